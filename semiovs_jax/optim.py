"""The reference's optimizers: a learning rate for each group of parameters, one weight decay, frozen parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from data_pipelines.errors import InputError

FROZEN = "frozen"


def poly_learning_rate(
    base: float, total_steps: int, power: float = 0.9
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Polynomial decay to zero, one update late.

    The reference sets the learning rate after each update, from the index of that update. Updates 0 and 1 therefore
    both use `base`, and update i uses base * (1 - (i - 1) / total_steps) ** power (reference: `semiovs_unimatch.py`).

    Args:
      base: the first learning rate.
      total_steps: number of updates of the whole run.
      power: exponent.

    Returns:
      A schedule, from the index of an update, starting at 0, to its learning rate.
    """

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip((jnp.asarray(step, float) - 1) / total_steps, 0, 1)
        return base * (1 - done) ** power

    return learning_rate


def learning_rate_schedules(config: ml_collections.ConfigDict, total_steps: int) -> dict[str, optax.Schedule]:
    """The learning rate schedule of each trained group.

    Args:
      config: `config.optim` with the keys learning_rate, backbone_multiplier and head_multiplier (factors of the
        groups' rates) and power (of the polynomial decay).
      total_steps: length of the decay, in updates.
    """
    multipliers = {"backbone": config.backbone_multiplier, "head": config.head_multiplier}

    def schedule(multiplier: float) -> optax.Schedule:
        base = poly_learning_rate(config.learning_rate, total_steps, config.power)
        return lambda step: multiplier * base(step)

    return {group: schedule(multiplier) for group, multiplier in multipliers.items()}


def _sgd(config: ml_collections.ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(decay=config.momentum),
        optax.scale_by_learning_rate(rate),
    )


def _adamw(config: ml_collections.ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.weight_decay)


_OPTIMIZERS: Mapping[str, Callable[[ml_collections.ConfigDict, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}


def optimizer_faults(config: ml_collections.ConfigDict) -> list[str]:
    """The name in `config.optim` if it is unknown."""
    if config.name in _OPTIMIZERS:
        return []
    return [f"config.optim.name={config.name!r}: choose one of {', '.join(sorted(_OPTIMIZERS))}"]


def make_optimizer(
    config: ml_collections.ConfigDict, total_steps: int, parameter_groups: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """The optimizer of `config.optim`; frozen parameters have no optimizer state and keep their values.

    "sgd" is that of `semiovs/semiovs_unimatch.py`: momentum, and weight decay that is added to the gradient. "adamw" is
    that of `semiovs_semivl/semivl.py`: decoupled weight decay, scaled by the group's learning rate.

    Args:
      config: name ("sgd" or "adamw"), momentum (of "sgd"), weight_decay (of every trained parameter, normalization
        and biases included), and the keys of `learning_rate_schedules`.
      total_steps: length of the decay, in updates.
      parameter_groups: maps the parameters to a tree of their groups: "backbone", "head" or "frozen".

    Raises:
      InputError: an unknown optimizer.
    """
    if faults := optimizer_faults(config):
        raise InputError(*faults)
    rates = learning_rate_schedules(config, total_steps)
    groups = {group: _OPTIMIZERS[config.name](config, rate) for group, rate in rates.items()}
    return optax.partition({**groups, FROZEN: optax.set_to_zero()}, parameter_groups)
