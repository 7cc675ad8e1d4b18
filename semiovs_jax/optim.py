"""The reference's optimizer: SGD with momentum, a smaller rate for the backbone, decay on every parameter."""

from typing import Any

import jax
import ml_collections
import optax

from semiovs_jax import schedules


def learning_rate_schedule(config: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """The backbone's learning rate by update (`config.optim.learning_rate`, `.power`)."""
    return schedules.poly_learning_rate(config.learning_rate, total_steps, config.power)


def make_optimizer(config: ml_collections.ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """SGD as `semiovs/semiovs_unimatch.py` sets it up.

    Args:
      config: `config.optim` with keys learning_rate (of the backbone), head_multiplier (the rest's rate over the
        backbone's), momentum, weight_decay (on batch normalization and biases too) and power.
      total_steps: length of the decay, in updates.
    """
    backbone = learning_rate_schedule(config, total_steps)
    groups = {
        "backbone": optax.scale_by_learning_rate(backbone),
        "head": optax.scale_by_learning_rate(lambda step: config.head_multiplier * backbone(step)),
    }
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(decay=config.momentum),
        optax.partition(groups, _parameter_groups),
    )


def _parameter_groups(params: dict[str, Any]) -> dict[str, Any]:
    """Group name of every leaf: "backbone" below that key, "head" elsewhere."""
    return {
        name: jax.tree.map(lambda _, n=name: "backbone" if n == "backbone" else "head", subtree)
        for name, subtree in params.items()
    }
