"""The one pytree of a run."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from semiovs_jax.labelers import Labeler


@struct.dataclass
class TrainState:
    """Everything a run carries from step to step.

    Attributes:
      step: int32 [], updates done.
      params: the student's parameters, a pure dict.
      batch_stats: its running statistics, a pure dict.
      opt_state: optax state.
      labelers: the state of each labeler that has one, by its name.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    labelers: dict[str, Any]

    @classmethod
    def create(
        cls,
        params: Any,
        batch_stats: Any,
        optimizer: optax.GradientTransformation,
        labelers: Mapping[str, Labeler],
    ) -> "TrainState":
        """State before the first update."""
        states = {name: labeler.init(params, batch_stats) for name, labeler in labelers.items()}
        with_state = {name: state for name, state in states.items() if jax.tree.leaves(state)}
        return cls(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), with_state)

    def labeler(self, name: str) -> Any:
        """The state of a labeler; an empty pytree for one without."""
        return self.labelers.get(name, ())


def count_parameters(params: Any) -> int:
    """Number of scalars in a pytree of arrays or shape structs."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
