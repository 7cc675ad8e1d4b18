import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax.bank import Bank, Draw, draw_snapshots, ensemble_logits
from semiovs_jax.models.functional import Functional


class _Scale(nnx.Module):
    """Logits are the image times a parameter, plus a statistic."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0):
        self.scale = nnx.Param(jnp.float32(scale))
        self.shift = nnx.BatchStat(jnp.float32(shift))

    def set_view(self, use_running_average: bool | None = None) -> None:
        pass

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...] + self.shift[...]


STUDENT, PARAMS, STATS = Functional.create(_Scale())


def _filled(mious: list[float], capacity: int = 4) -> Bank:
    """A bank that was offered students of scale 1, 2, 3, ... with these scores."""
    bank = Bank.create(PARAMS, STATS, capacity)
    for number, miou in enumerate(mious, 1):
        bank = bank.offer({"scale": jnp.float32(number)}, {"shift": jnp.float32(10 * number)}, jnp.float32(miou))
    return bank


def test_only_a_new_best_joins():
    bank = _filled([0.5, 0.4, 0.5, 0.6, float("nan"), 0.61])
    assert int(bank.size) == 3
    np.testing.assert_array_equal(bank.params["scale"], [1, 4, 6, 0])
    np.testing.assert_array_equal(bank.batch_stats["shift"], [10, 40, 60, 0])
    assert float(bank.best) == np.float32(0.61)


def test_the_oldest_leaves_a_full_bank():
    bank = _filled([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert int(bank.size) == 4
    np.testing.assert_array_equal(np.sort(bank.params["scale"]), [3, 4, 5, 6])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31 - 1), held=st.integers(0, 6), at_most=st.integers(1, 4))
def test_a_draw_is_of_different_snapshots_with_weights_of_one(seed: int, held: int, at_most: int):
    bank = _filled([0.1 * n for n in range(1, held + 1)])
    slots, weights, used = jax.device_get(draw_snapshots(jax.random.key(seed), bank, at_most))
    assert min(1, held) <= used <= min(at_most, held, 4)
    assert len(set(slots[:used].tolist())) == used
    assert all(slot < held for slot in slots[:used])
    assert weights[:used].sum() == pytest.approx(min(1, held))
    assert not weights[used:].any()


def test_draws_are_as_the_reference_distributes_them():
    bank = _filled([0.1, 0.2, 0.3, 0.4])
    draws = jax.vmap(lambda key: draw_snapshots(key, bank, 3))(jax.random.split(jax.random.key(0), 6000))
    counts = np.bincount(draws.used, minlength=4)[1:]
    np.testing.assert_allclose(counts / 6000, 1 / 3, atol=0.03)
    first = np.bincount(draws.slots[:, 0], minlength=4)
    np.testing.assert_allclose(first / 6000, 1 / 4, atol=0.03)
    pairs = draws.weights[draws.used == 2][:, 0]
    np.testing.assert_allclose([pairs.mean(), pairs.var()], [1 / 2, 1 / 12], atol=0.02)  # uniform: Dirichlet(1, 1)


def test_the_ensemble_is_the_weighted_sum_of_the_drawn():
    bank = _filled([0.1, 0.2, 0.3])
    x = jnp.arange(6.0).reshape(1, 1, 2, 3)
    draw = Draw(jnp.array([2, 0, 1]), jnp.array([0.25, 0.75, 9.0]), jnp.int32(2))
    np.testing.assert_allclose(ensemble_logits(bank, draw, STUDENT, x), 0.25 * (3 * x + 30) + 0.75 * (x + 10))


def test_an_empty_bank_says_nothing():
    bank = _filled([])
    x = jnp.ones((1, 2, 2, 3))
    draw = draw_snapshots(jax.random.key(0), bank, 3)
    np.testing.assert_array_equal(ensemble_logits(bank, draw, STUDENT, x), 0)
