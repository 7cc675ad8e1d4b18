import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from semiovs_jax.labelers.base import Facts, View
from semiovs_jax.labelers.snapshots import SnapshotDraw, SnapshotState, build, draw_snapshots, ensemble_logits
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


def _filled(mious: list[float], capacity: int = 4) -> SnapshotState:
    """Snapshots of a run that was offered students of scale 1, 2, 3, ... with these scores."""
    snapshots = SnapshotState.create(PARAMS, STATS, capacity)
    for number, miou in enumerate(mious, 1):
        snapshots = snapshots.offer(
            {"scale": jnp.float32(number)}, {"shift": jnp.float32(10 * number)}, jnp.float32(miou)
        )
    return snapshots


def test_only_a_new_best_joins():
    snapshots = _filled([0.5, 0.4, 0.5, 0.6, float("nan"), 0.61])
    assert int(snapshots.size) == 3
    np.testing.assert_array_equal(snapshots.params["scale"], [1, 4, 6, 0])
    np.testing.assert_array_equal(snapshots.batch_stats["shift"], [10, 40, 60, 0])
    assert float(snapshots.best) == np.float32(0.61)


def test_the_oldest_snapshot_is_replaced():
    snapshots = _filled([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert int(snapshots.size) == 4
    np.testing.assert_array_equal(np.sort(snapshots.params["scale"]), [3, 4, 5, 6])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31 - 1), held=st.integers(0, 6), at_most=st.integers(1, 4))
def test_a_draw_is_of_different_snapshots_with_weights_of_one(seed: int, held: int, at_most: int):
    snapshots = _filled([0.1 * n for n in range(1, held + 1)])
    slots, weights, used = jax.device_get(draw_snapshots(jax.random.key(seed), snapshots, at_most))
    assert min(1, held) <= used <= min(at_most, held, 4)
    assert len(set(slots[:used].tolist())) == used
    assert all(slot < held for slot in slots[:used])
    assert weights[:used].sum() == pytest.approx(min(1, held))
    assert not weights[used:].any()


def test_draws_are_as_the_reference_distributes_them():
    snapshots = _filled([0.1, 0.2, 0.3, 0.4])
    draws = jax.vmap(lambda key: draw_snapshots(key, snapshots, 3))(jax.random.split(jax.random.key(0), 6000))
    counts = np.bincount(draws.used, minlength=4)[1:]
    np.testing.assert_allclose(counts / 6000, 1 / 3, atol=0.03)
    first = np.bincount(draws.slots[:, 0], minlength=4)
    np.testing.assert_allclose(first / 6000, 1 / 4, atol=0.03)
    pairs = draws.weights[draws.used == 2][:, 0]
    np.testing.assert_allclose([pairs.mean(), pairs.var()], [1 / 2, 1 / 12], atol=0.02)  # uniform: Dirichlet(1, 1)


def test_the_ensemble_is_the_weighted_sum_of_the_drawn():
    snapshots = _filled([0.1, 0.2, 0.3])
    x = jnp.arange(6.0).reshape(1, 1, 2, 3)
    draw = SnapshotDraw(jnp.array([2, 0, 1]), jnp.array([0.25, 0.75, 9.0]), jnp.int32(2))
    np.testing.assert_allclose(ensemble_logits(snapshots, draw, STUDENT, x), 0.25 * (3 * x + 30) + 0.75 * (x + 10))


def test_without_a_snapshot_the_logits_are_zero():
    snapshots = _filled([])
    x = jnp.ones((1, 2, 2, 3))
    draw = draw_snapshots(jax.random.key(0), snapshots, 3)
    np.testing.assert_array_equal(ensemble_logits(snapshots, draw, STUDENT, x), 0)


def test_the_labeler_is_ready_with_its_first_snapshot_and_valid_from_then_on():
    config = ConfigDict({"capacity": 2, "draws": 3})  # more draws than places are as many as places
    labeler = build(config, Facts(None, None, STUDENT, 4))
    image = jnp.ones((1, 2, 2, 3))
    views = {"unlabeled": View(image, image, jnp.ones((1, 2, 2), bool).at[0, 0].set(False))}
    state = labeler.init(PARAMS, STATS)
    for ready in (False, True):
        assert bool(labeler.ready(state)) == ready
        found = labeler.label(state, (), views, jax.random.key(0))["unlabeled"]
        np.testing.assert_array_equal(found.valid, views["unlabeled"].valid & ready)
        state = labeler.after_evaluation(state, PARAMS, STATS, jnp.float32(0.5))
