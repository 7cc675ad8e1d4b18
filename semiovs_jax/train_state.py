"""The one pytree of a run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from semiovs_jax.bank import Bank


@struct.dataclass
class TrainState:
    """Everything a run carries from step to step.

    Attributes:
      step: int32 [], updates done.
      params: the student's parameters, a pure dict.
      batch_stats: its running statistics, a pure dict.
      opt_state: optax state.
      bank: snapshots of the student; None for methods without one.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    bank: Bank | None = None

    @classmethod
    def create(
        cls, params: Any, batch_stats: Any, optimizer: optax.GradientTransformation, bank_capacity: int = 0
    ) -> "TrainState":
        """State before the first update; with a capacity, with an empty bank."""
        bank = Bank.create(params, batch_stats, bank_capacity) if bank_capacity else None
        return cls(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), bank)

    def offer_snapshot(self, miou: jax.Array) -> "TrainState":
        """The state after an evaluation: the student joins its bank if this mIoU, in 0..1, is a new best."""
        assert self.bank is not None
        return dataclasses.replace(self, bank=self.bank.offer(self.params, self.batch_stats, miou))


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays or shape structs."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
