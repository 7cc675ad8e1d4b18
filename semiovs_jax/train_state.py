"""The one pytree of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """Everything a run carries from step to step.

    Attributes:
      step: int32 [], updates done.
      params: the student's parameters, a pure dict.
      batch_stats: its running statistics, a pure dict.
      opt_state: optax state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, batch_stats: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """State before the first update."""
        return cls(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays or shape structs."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
