"""SemiVL's frozen CLIP, which labels the crops inside the step with its own confidence."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.labelers.base import Facts, Labeler, View
from semiovs_jax.labelers.ovs import label_crop
from semiovs_jax.ovs.base import OVS, PseudoLabel
from semiovs_jax.ovs.maskclip import build_maskclip_labeler
from semiovs_jax.ovs.maskclip import faults as model_faults

SECTION = "clip"


def reads_words(config: ml_collections.ConfigDict) -> bool:
    """The vocabulary of `config.clip` is used."""
    del config
    return True


def faults(config: ml_collections.ConfigDict, dataset: DatasetInfo | None, crop_size: int) -> list[str]:
    """What is wrong with `config.clip`."""
    del dataset
    return model_faults(config, "config.clip", image_size=crop_size)


def build(config: ml_collections.ConfigDict, facts: Facts) -> Labeler:
    """The labeler of `config.clip`; reads its weights. Raises `InputError` as `build_maskclip_labeler`."""
    return FrozenModel(build_maskclip_labeler(config, facts.dataset.num_classes, image_size=facts.crop_size))


class FrozenModel(Labeler):
    """Labels by a frozen model, with the model's confidence.

    Args:
      model: labels crops.
    """

    def __init__(self, model: OVS):
        self.weights = model.weights
        self._model = model

    def label(self, state: Any, weights: Any, views: Mapping[str, View], key: jax.Array) -> dict[str, PseudoLabel]:
        """See `Labeler.label`."""
        del state, key
        return {name: label_crop(self._model, weights, view) for name, view in views.items()}
