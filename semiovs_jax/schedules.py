"""Learning rate and loss-weight schedules, as functions of a step or epoch that may be traced."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def poly_learning_rate(
    base: float, total_steps: int, power: float = 0.9
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Polynomial decay to zero, one update late.

    The reference sets the learning rate after an update from that update's index, so updates 0 and 1 both use `base`
    and update i uses base * (1 - (i - 1) / total_steps) ** power (reference: `semiovs_unimatch.py`).

    Args:
      base: the first learning rate.
      total_steps: number of updates of the whole run.
      power: exponent.

    Returns:
      A schedule: update index, from 0, to learning rate.
    """

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip((jnp.asarray(step, float) - 1) / total_steps, 0, 1)
        return base * (1 - done) ** power

    return learning_rate


def triangle(epoch: jax.typing.ArrayLike, total_epochs: int, warmup_epochs: int | None = None) -> jax.Array:
    """Weight that rises linearly from 0 to 1 and falls back to 0 (reference: PrevMatch's mu).

    Args:
      epoch: from 0 to `total_epochs`.
      total_epochs: where it is 0 again.
      warmup_epochs: where it is 1; half of `total_epochs`, rounded down, by default.

    Returns:
      float scalar in 0..1. Without warmup epochs it starts at 1.
    """
    peak = total_epochs // 2 if warmup_epochs is None else warmup_epochs
    epoch = jnp.asarray(epoch, float)
    rise = epoch / max(peak, 1)
    fall = (total_epochs - epoch) / max(total_epochs - peak, 1)
    return jnp.where(epoch < peak, rise, fall)
