import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.ovs.training.sed_optim import make_optimizer, rate_multipliers

PARTS = ("visual", "text", "aggregator")


def _config(**changes) -> ConfigDict:
    return ConfigDict(
        {
            "learning_rate": 0.1,
            "visual_multiplier": 0.01,
            "text_multiplier": 0.5,
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "clip_norm": 1e9,
            **changes,
        }
    )


def _params(parts=PARTS):
    return {part: {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3), "gamma": jnp.full(3, 0.5)} for part in parts}


def _update(config, params, grads, steps=100, count=1):
    optimizer = make_optimizer(config, steps)
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_every_part_moves_at_its_own_rate():
    before = jax.tree.map(jnp.zeros_like, _params())
    after = _update(_config(), before, jax.tree.map(lambda leaf: jnp.full(leaf.shape, -3.0), before))
    # The first update of Adam is the sign of the gradient.
    for part, rate in (("visual", 0.001), ("text", 0.05), ("aggregator", 0.1)):
        for name, leaf in after[part].items():
            np.testing.assert_allclose(leaf - before[part][name], rate, rtol=1e-5)


def test_only_kernels_decay():
    before = _params()
    after = _update(_config(weight_decay=0.2), before, jax.tree.map(jnp.zeros_like, before))
    for part, rate in (("visual", 0.001), ("text", 0.05), ("aggregator", 0.1)):
        np.testing.assert_allclose(after[part]["kernel"], 2 * (1 - 0.2 * rate), rtol=1e-6)
        for name in ("bias", "gamma"):
            np.testing.assert_array_equal(after[part][name], before[part][name])


def test_frozen_parts_have_no_optimizer_state():
    config = _config(visual_multiplier=0.0, text_multiplier=0.0)
    assert rate_multipliers(config) == {"aggregator": 1.0}
    params = _params(rate_multipliers(config))
    matrices = [leaf for leaf in jax.tree.leaves(make_optimizer(config, 10).init(params)) if leaf.ndim == 2]
    assert len(matrices) == 2  # Adam's two moments of one kernel


def test_gradients_of_all_parts_are_clipped_together():
    params = _params()
    grads = jax.tree.map(jnp.ones_like, params)
    grads["text"]["kernel"] *= 1e6
    optimizer = make_optimizer(_config(clip_norm=0.01), 10)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.global_norm(moments), 0.1 * 0.01, rtol=1e-5)
    assert float(jnp.abs(moments["aggregator"]["bias"]).max()) < 1e-8


def test_the_rate_falls_as_a_cosine_to_zero():
    params = {"aggregator": {"bias": jnp.zeros(1)}}
    grads = {"aggregator": {"bias": jnp.ones(1)}}
    config = _config(visual_multiplier=0.0, text_multiplier=0.0)
    positions = [float(_update(config, params, grads, 8, n)["aggregator"]["bias"][0]) for n in range(10)]
    rates = 0.1 * 0.5 * (1 + np.cos(np.pi * np.arange(9).clip(max=8) / 8))
    np.testing.assert_allclose(-np.diff(positions), rates, rtol=1e-3, atol=1e-6)


def test_negative_rates_are_refused():
    with pytest.raises(InputError, match="visual_multiplier is -1"):
        rate_multipliers(_config(visual_multiplier=-1.0))
