"""AdamW for SED, with a learning rate for each part, and weight decay on kernels only.

Source: xb534/SED at 250b495f, `train_net.py` and `configs/config.yaml`. The reference also decays biases and layer
scales.
"""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import optax

from data_pipelines.errors import InputError


def rate_multipliers(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Multiplier of `learning_rate` for each trained part. Parts with multiplier 0 are frozen and left out.

    Args:
      config: `config.optim`.

    Raises:
      InputError: a multiplier is negative.
    """
    multipliers = {
        "visual": config.visual_multiplier,
        "text": config.text_multiplier,
        "aggregator": 1.0,
    }
    for part, value in multipliers.items():
        if value < 0:
            raise InputError(f"config.optim.{part}_multiplier is {value}; set it to 0 (frozen) or more")
    return {part: value for part, value in multipliers.items() if value}


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW on the clipped gradient, with warmup and cosine decay to zero.

    Args:
      config: `config.optim` with learning_rate (of the aggregator), visual_multiplier and text_multiplier,
        warmup_steps, weight_decay and clip_norm (of the gradient of all trained parts together).
      steps: number of updates until the learning rate is zero.

    Returns:
      An optimizer for a dict of parameters by part.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, min(config.warmup_steps, steps - 1), steps)
    multipliers = rate_multipliers(config)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay, mask=_is_kernel),
        optax.partition({part: optax.scale(value) for part, value in multipliers.items()}, _part_of_leaf),
        optax.scale_by_learning_rate(schedule),
    )


def _is_kernel(params: Any) -> Any:
    """True for matrices, kernels and embeddings; False for biases, norms and layer scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _part_of_leaf(params: Mapping[str, Any]) -> dict[str, Any]:
    return {part: jax.tree.map(lambda _, part=part: part, tree) for part, tree in params.items()}
