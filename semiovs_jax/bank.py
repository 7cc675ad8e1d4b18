"""The bank of snapshots: earlier students that label together (PrevMatch, arXiv 2405.20610, section 3.2).

Snapshots are stacked along a leading axis and overwritten in turn, so the bank has one shape from the first step to the
last: nothing recompiles as it fills, and it is sharded and checkpointed as the rest of the state. Reference:
`semiovs/util/prev_utils.py`, which keeps a list of modules and loses it with the process.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from semiovs_jax.models.functional import Functional


@struct.dataclass
class Bank:
    """Snapshots of the student.

    Attributes:
      params: parameters, a pure dict whose leaves are [capacity, ...].
      batch_stats: running statistics, likewise.
      pushed: int32 [], snapshots ever pushed; slot i holds the latest one whose number is i modulo the capacity.
      best: float32 [], mIoU of the latest snapshot, which is the best so far; 0 before the first.
    """

    params: Any
    batch_stats: Any
    pushed: jax.Array
    best: jax.Array

    @classmethod
    def create(cls, params: Any, batch_stats: Any, capacity: int) -> "Bank":
        """An empty bank for snapshots like these."""

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

    def offer(self, params: Any, batch_stats: Any, miou: jax.Array) -> "Bank":
        """The bank after an evaluation: with this student if its mIoU is a new best, in the place of the oldest."""
        slot = self.pushed % self.capacity
        is_best = miou > self.best

        def put(stacked: jax.Array, leaf: jax.Array) -> jax.Array:
            old = jax.lax.dynamic_index_in_dim(stacked, slot, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(stacked, jnp.where(is_best, leaf, old), slot, 0)

        return Bank(
            params=jax.tree.map(put, self.params, params),
            batch_stats=jax.tree.map(put, self.batch_stats, batch_stats),
            pushed=self.pushed + is_best,
            best=jnp.where(is_best, miou, self.best),
        )


class Draw(NamedTuple):
    """The snapshots that label a batch.

    Attributes:
      slots: int32 [D], their slots, in the order of summation; the first `used` count.
      weights: float [D], of their logits; they sum to 1 over those in use and are 0 beyond.
      used: int32 [], how many.
    """

    slots: jax.Array
    weights: jax.Array
    used: jax.Array


def draw_snapshots(key: jax.Array, bank: Bank, at_most: int) -> Draw:
    """Draws 1 to `at_most` different snapshots, as far as there are so many, with Dirichlet(1, ..., 1) weights.

    Args:
      key: random key.
      bank: where to draw from; the draw from an empty one has no snapshot.
      at_most: most snapshots, not above the capacity.
    """
    used_key, slot_key, weight_key = jax.random.split(key, 3)
    used = jnp.minimum(jax.random.randint(used_key, (), 1, at_most + 1), bank.size)
    rank = jax.random.uniform(slot_key, (bank.capacity,))
    slots = jnp.argsort(jnp.where(jnp.arange(bank.capacity) < bank.size, rank, jnp.inf))[:at_most]
    # A Dirichlet(1, ..., 1) draw is a normalized vector of exponential ones.
    share = jnp.where(jnp.arange(at_most) < used, jax.random.exponential(weight_key, (at_most,)), 0)
    return Draw(slots.astype(jnp.int32), share / jnp.where(used > 0, share.sum(), 1), used)


def ensemble_logits(bank: Bank, draw: Draw, student: Functional, image: jax.Array) -> jax.Array:
    """Weighted sum of the drawn snapshots' eval-mode logits; only those in use are computed.

    Args:
      bank: the snapshots.
      draw: which of them.
      student: their architecture.
      image: float [N, H, W, 3], normalized.

    Returns:
      float [N, H, W, K]; zeros without a snapshot. Not differentiable in reverse.
    """

    def logits(i: jax.Array | int) -> jax.Array:
        params, batch_stats = jax.tree.map(
            lambda stacked: jax.lax.dynamic_index_in_dim(stacked, draw.slots[i], keepdims=False),
            (bank.params, bank.batch_stats),
        )
        return student.apply(params, batch_stats, image, train=False)[0]

    zero = jax.eval_shape(logits, 0)
    add = lambda i, total: total + draw.weights[i].astype(total.dtype) * logits(i)  # noqa: E731
    return jax.lax.fori_loop(0, draw.used, add, jnp.zeros(zero.shape, zero.dtype))
