"""Snapshots of the student that label together (PrevMatch, arXiv 2405.20610, section 3.2).

Snapshots are stacked along a leading axis and overwritten in turn, so the state has one shape from the first step to
the last: nothing recompiles as it fills, and it is sharded and checkpointed like the rest of the state. Reference:
`semiovs/util/prev_utils.py`, which keeps a list of modules and loses it with the process.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import struct

from semiovs_jax.labelers.base import Facts, Labeler, View
from semiovs_jax.labelers.student import from_logits
from semiovs_jax.models.functional import Functional
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.runtime.sharding import deinterleave, interleave

SECTION = "method.snapshots"


def build(config: ml_collections.ConfigDict, facts: Facts) -> Labeler:
    """The labeler of `config.method.snapshots`, with the keys capacity and draws."""
    return Snapshots(facts.student, config.capacity, min(config.draws, config.capacity))


class Snapshots(Labeler):
    """Labels by 1 to `draws` of the held snapshots; invalid, and not ready, while there is none.

    Args:
      student: the architecture.
      capacity: snapshots held at most.
      draws: snapshots that label a batch together at most, not above the capacity.
    """

    def __init__(self, student: Functional, capacity: int, draws: int):
        self._student = student
        self._capacity = capacity
        self._draws = draws

    def init(self, params: Any, batch_stats: Any) -> "SnapshotState":
        """No snapshot."""
        return SnapshotState.create(params, batch_stats, self._capacity)

    def ready(self, state: "SnapshotState") -> jax.Array:
        """Whether there is a snapshot."""
        return state.pushed > 0

    def label(
        self, state: "SnapshotState", weights: Any, views: Mapping[str, View], key: jax.Array
    ) -> dict[str, PseudoLabel]:
        """See `Labeler.label`."""
        del weights
        return label_by_draw(state, draw_snapshots(key, state, self._draws), self._student, views)

    def after_evaluation(
        self, state: "SnapshotState", params: Any, batch_stats: Any, miou: jax.Array
    ) -> "SnapshotState":
        """With this student if its mIoU is a new best, in the place of the oldest snapshot."""
        return state.offer(params, batch_stats, miou)


def label_by_draw(
    snapshots: "SnapshotState", draw: "SnapshotDraw", student: Functional, views: Mapping[str, View]
) -> dict[str, PseudoLabel]:
    """Labels of the drawn snapshots together, by stream; invalid if the draw is empty."""
    logits = ensemble_logits(snapshots, draw, student, interleave(*(view.image for view in views.values())))
    return {
        name: from_logits(own, view.valid & (draw.used > 0))
        for (name, view), own in zip(views.items(), deinterleave(logits, len(views)), strict=True)
    }


@struct.dataclass
class SnapshotState:
    """The snapshots, as part of the train state.

    Attributes:
      params: parameters, a pure dict whose leaves are [capacity, ...].
      batch_stats: running statistics, leaves [capacity, ...].
      pushed: int32 [], snapshots ever pushed; slot i holds the latest one whose number is i modulo the capacity.
      best: float32 [], mIoU of the latest snapshot, which is the best so far; 0 before the first.
    """

    params: Any
    batch_stats: Any
    pushed: jax.Array
    best: jax.Array

    @classmethod
    def create(cls, params: Any, batch_stats: Any, capacity: int) -> "SnapshotState":
        """No snapshot yet, and room for snapshots like these."""

        def empty(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), tree)

        return cls(empty(params), empty(batch_stats), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    @property
    def capacity(self) -> int:
        """Snapshots it holds at most."""
        return jax.tree.leaves(self.params)[0].shape[0]

    @property
    def size(self) -> jax.Array:
        """Snapshots it holds, int32 []: the slots below this."""
        return jnp.minimum(self.pushed, self.capacity)

    def offer(self, params: Any, batch_stats: Any, miou: jax.Array) -> "SnapshotState":
        """With this student if its mIoU is a new best, in the place of the oldest."""
        slot = self.pushed % self.capacity
        is_best = miou > self.best

        def put(stacked: jax.Array, leaf: jax.Array) -> jax.Array:
            old = jax.lax.dynamic_index_in_dim(stacked, slot, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(stacked, jnp.where(is_best, leaf, old), slot, 0)

        return SnapshotState(
            params=jax.tree.map(put, self.params, params),
            batch_stats=jax.tree.map(put, self.batch_stats, batch_stats),
            pushed=self.pushed + is_best,
            best=jnp.where(is_best, miou, self.best),
        )


class SnapshotDraw(NamedTuple):
    """The snapshots that label a batch.

    Attributes:
      slots: int32 [D], their slots, in the order of summation; the first `used` count.
      weights: float [D], of their logits; they sum to 1 over those in use and are 0 beyond.
      used: int32 [], how many.
    """

    slots: jax.Array
    weights: jax.Array
    used: jax.Array


def draw_snapshots(key: jax.Array, snapshots: SnapshotState, at_most: int) -> SnapshotDraw:
    """Draws 1 to `at_most` different snapshots, as far as there are so many, with Dirichlet(1, ..., 1) weights.

    Args:
      key: random key.
      snapshots: where to draw from; without a snapshot, the draw is empty.
      at_most: most snapshots, not above the capacity.
    """
    used_key, slot_key, weight_key = jax.random.split(key, 3)
    used = jnp.minimum(jax.random.randint(used_key, (), 1, at_most + 1), snapshots.size)
    rank = jax.random.uniform(slot_key, (snapshots.capacity,))
    slots = jnp.argsort(jnp.where(jnp.arange(snapshots.capacity) < snapshots.size, rank, jnp.inf))[:at_most]
    # A Dirichlet(1, ..., 1) draw is a normalized vector of exponential ones.
    share = jnp.where(jnp.arange(at_most) < used, jax.random.exponential(weight_key, (at_most,)), 0)
    return SnapshotDraw(slots.astype(jnp.int32), share / jnp.where(used > 0, share.sum(), 1), used)


def ensemble_logits(snapshots: SnapshotState, draw: SnapshotDraw, student: Functional, image: jax.Array) -> jax.Array:
    """Weighted sum of the drawn snapshots' eval-mode logits; only those in use are computed.

    Args:
      snapshots: the snapshots.
      draw: which of them.
      student: their architecture.
      image: float [N, H, W, 3], normalized.

    Returns:
      float [N, H, W, K]; zeros without a snapshot. Not differentiable in reverse.
    """

    def logits(i: jax.Array | int) -> jax.Array:
        params, batch_stats = jax.tree.map(
            lambda stacked: jax.lax.dynamic_index_in_dim(stacked, draw.slots[i], keepdims=False),
            (snapshots.params, snapshots.batch_stats),
        )
        return student.apply(params, batch_stats, image, train=False)[0]

    zero = jax.eval_shape(logits, 0)
    add = lambda i, total: total + draw.weights[i].astype(total.dtype) * logits(i)  # noqa: E731
    return jax.lax.fori_loop(0, draw.used, add, jnp.zeros(zero.shape, zero.dtype))
