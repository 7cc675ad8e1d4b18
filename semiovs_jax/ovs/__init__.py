"""Open-vocabulary segmentation models: they label images whose classes the student has never been shown."""

from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.errors import InputError
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.maskclip import build_dense_clip
from semiovs_jax.ovs.sed import build_sed

__all__ = ["MODELS", "build_ovs"]

MODELS: dict[str, Callable[[Mapping[str, Any], int], OVS]] = {
    "dense_clip": build_dense_clip,
    "sed": build_sed,
}


def build_ovs(config: Mapping[str, Any], num_classes: int) -> OVS:
    """Builds the model that `config.ovs` names.

    Args:
      config: `name`, a key of `MODELS`, and what that model's builder reads.
      num_classes: classes of the dataset, which the vocabulary must have.

    Raises:
      InputError: an unknown name, or as the model's builder.
    """
    if config["name"] not in MODELS:
        raise InputError(f"config.ovs.name is {config['name']!r}; choose one of {', '.join(sorted(MODELS))}")
    return MODELS[config["name"]](config, num_classes)


def model_faults(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the name and the weight file of the model that `config.ovs` names; reads the file's header."""
    if config["name"] not in MODELS:
        return [f"config.ovs.name is {config['name']!r}; choose one of {', '.join(sorted(MODELS))}"]
    return []
