"""The weights a student starts with: a pretrained backbone, a random head, and the words of its classes."""

from pathlib import Path
from typing import Any

import ml_collections

from data_pipelines.errors import InputError
from semiovs_jax.convert.deeplab import load_backbone
from semiovs_jax.models import DeepLabV3Plus, Functional


def initial_weights(config: ml_collections.ConfigDict, student: DeepLabV3Plus) -> tuple[Any, Any]:
    """A student's parameters and running statistics before training.

    Args:
      config: the whole config.
      student: with random weights.

    Raises:
      InputError: there are no weights to load and `random_init` does not ask for random ones, or they do not fit.
    """
    _, params, batch_stats = Functional.create(student)
    model = config.model
    if model.random_init:
        return params, batch_stats
    if not Path(model.weights).is_file():
        raise InputError(
            f"config.model.weights={model.weights!r}: no such file; fetch the ImageNet backbone that the UniMatch and "
            f"SemiOVS repositories link to ({model.backbone}.pth) and convert it with python -m semiovs_jax.convert "
            f"{model.backbone}.pth {model.weights or 'OUT.safetensors'} --kind=resnet, or start from random weights "
            "with --config.model.random_init=True"
        )
    return load_backbone(model.weights, params, batch_stats)
