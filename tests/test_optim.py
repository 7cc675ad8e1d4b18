import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.optim import learning_rate_schedules, make_optimizer

STEPS = 8
PARAMS = {
    "attention": jnp.array([1.0, -2.0]),
    "norm": jnp.array([3.0, 0.5]),
    "head": {"kernel": jnp.array([[0.5], [-1.0]]), "bias": jnp.array([0.25])},
}
GROUPS = {"attention": "backbone", "norm": "frozen", "head": {"kernel": "head", "bias": "head"}}


def _config(**changes: Any) -> ConfigDict:
    config = {"name": "adamw", "learning_rate": 1e-3, "backbone_multiplier": 0.01, "head_multiplier": 10.0}
    return ConfigDict({**config, "momentum": 0.9, "weight_decay": 0.01, "power": 0.9, **changes})


def _gradients() -> list[Any]:
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), PARAMS) for _ in range(4)]


def _train(config: ConfigDict) -> Any:
    optimizer = make_optimizer(config, STEPS, lambda _: GROUPS)
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradient in _gradients():
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def _rate(step: int, multiplier: float) -> float:
    return 1e-3 * multiplier * (1 - max(step - 1, 0) / STEPS) ** 0.9


def _adamw(leaf: Any, gradients: list[Any], multiplier: float) -> np.ndarray:
    """torch.optim.AdamW's update, as its documentation states it."""
    x, m, v = np.asarray(leaf, np.float64), 0.0, 0.0
    for step, gradient in enumerate(np.asarray(gradients, np.float64)):
        rate = _rate(step, multiplier)
        x = x * (1 - rate * 0.01)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        corrected = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
        x = x - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return x


def _sgd(leaf: Any, gradients: list[Any], multiplier: float) -> np.ndarray:
    """torch.optim.SGD's update with momentum, as its documentation states it."""
    x, momentum = np.asarray(leaf, np.float64), 0.0
    for step, gradient in enumerate(np.asarray(gradients, np.float64)):
        momentum = 0.9 * momentum + gradient + 0.01 * x
        x = x - _rate(step, multiplier) * momentum
    return x


@pytest.mark.parametrize(("name", "update"), [("adamw", _adamw), ("sgd", _sgd)])
def test_each_group_has_its_rate_and_the_same_decay(name: str, update: Any):
    trained, gradients = _train(_config(name=name)), _gradients()
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    near(trained["attention"], update(PARAMS["attention"], [g["attention"] for g in gradients], 0.01))
    for leaf in ("kernel", "bias"):
        near(trained["head"][leaf], update(PARAMS["head"][leaf], [g["head"][leaf] for g in gradients], 10.0))
    np.testing.assert_array_equal(trained["norm"], PARAMS["norm"])


@pytest.mark.parametrize(("name", "copies"), [("adamw", 2), ("sgd", 1)])
def test_only_trained_parameters_have_state(name: str, copies: int):
    state = make_optimizer(_config(name=name), STEPS, lambda _: GROUPS).init(PARAMS)
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in kept) == copies * (2 + 2 + 1)


def test_rates_are_reported_by_group():
    rates = learning_rate_schedules(_config(), STEPS)
    assert {group: float(rate(5)) for group, rate in rates.items()} == pytest.approx(
        {"backbone": _rate(5, 0.01), "head": _rate(5, 10.0)}
    )


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(InputError, match=r"config\.optim\.name='adam': choose one of adamw, sgd"):
        make_optimizer(_config(name="adam"), STEPS, lambda _: GROUPS)
