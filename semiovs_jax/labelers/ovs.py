"""The OVS as a labeler of OOD images: labels that are read from the batch, or made inside the step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.datasets import DatasetInfo
from semiovs_jax import augment
from semiovs_jax.labelers.base import Facts, Labeler, View
from semiovs_jax.ovs import build_ovs, model_faults
from semiovs_jax.ovs.base import OVS, PseudoLabel

SECTION = "ovs"


LABELS = ("cached", "online", "external")


def reads_words(config: ml_collections.ConfigDict) -> bool:
    """Whether the vocabulary of `config.ovs` is used."""
    return config.labels != "external"


def faults(config: ml_collections.ConfigDict, dataset: DatasetInfo | None, crop_size: int) -> list[str]:
    """What is wrong with `config.ovs`."""
    del dataset, crop_size
    if config.labels not in LABELS:
        return [f"config.ovs.labels={config.labels!r}: choose one of {', '.join(LABELS)}"]
    return model_faults(config) if reads_words(config) else []


def build(config: ml_collections.ConfigDict, facts: Facts) -> Labeler:
    """The labeler of `config.ovs`; reads the model's weights where it labels inside the step.

    Args:
      config: `labels`: "online" labels inside the step, any other way reads labels from the batch; for "online" also
        what `build_ovs` reads.
      facts: classes, and the method's `ovs_threshold`.

    Raises:
      InputError: as `build_ovs`.
    """
    ignore_index, threshold = facts.dataset.ignore_index, facts.method.ovs_threshold
    if config.labels == "online":
        return OnlineLabels(build_ovs(config, facts.dataset.num_classes), ignore_index, threshold)
    return CachedLabels(ignore_index, threshold)


class CachedLabels(Labeler):
    """Reads the labels, made before training, from the batch.

    Args:
      ignore_index: marks pixels without a label.
      threshold: see `binarize_confidence`. At 0, the batch needs no confidence.
    """

    def __init__(self, ignore_index: int, threshold: float = 0.0):
        self._ignore_index = ignore_index
        self._threshold = threshold

    def label(self, state: Any, weights: Any, views: Mapping[str, View], key: jax.Array) -> dict[str, PseudoLabel]:
        """See `Labeler.label`."""
        del state, weights, key
        return {name: self._read(view) for name, view in views.items()}

    def _read(self, view: View) -> PseudoLabel:
        assert view.label is not None
        certain = jnp.ones(view.label.shape, jnp.float32)
        confidence = certain if view.confidence is None else augment.as_float(view.confidence) / 255
        found = PseudoLabel(view.label, confidence, view.valid)
        return binarize_confidence(found, ignore_index=self._ignore_index, threshold=self._threshold)


class OnlineLabels(Labeler):
    """Labels the crops inside the step.

    Args:
      model: the OVS.
      ignore_index: marks pixels without a label.
      threshold: see `binarize_confidence`.
    """

    def __init__(self, model: OVS, ignore_index: int, threshold: float = 0.0):
        self.weights = model.weights
        self._model = model
        self._ignore_index = ignore_index
        self._threshold = threshold

    def label(self, state: Any, weights: Any, views: Mapping[str, View], key: jax.Array) -> dict[str, PseudoLabel]:
        """See `Labeler.label`."""
        del state, key
        return {
            name: binarize_confidence(
                label_crop(self._model, weights, view), ignore_index=self._ignore_index, threshold=self._threshold
            )
            for name, view in views.items()
        }


def label_crop(model: OVS, weights: Any, view: View) -> PseudoLabel:
    """A model's labels of the crop, valid where the view is, with the model's confidence."""
    _, height, width, _ = view.crop.shape
    found = model.label(weights, augment.as_float(view.crop), label_size=(height, width))
    return found._replace(valid=found.valid & view.valid)


def binarize_confidence(found: PseudoLabel, *, ignore_index: int, threshold: float = 0.0) -> PseudoLabel:
    """OVS labels as the paper uses them: confidence 1 everywhere, the ignore index invalid.

    Args:
      found: labels as integers of any type, with the OVS's own confidence.
      ignore_index: marks pixels to leave out.
      threshold: pixels of less confidence get confidence 0: they stay in the denominator of a loss, but never pass
        its threshold.
    """
    label = found.label.astype(jnp.int32)
    known = label != ignore_index
    confidence = (found.confidence >= threshold).astype(jnp.float32)
    return PseudoLabel(jnp.where(known, label, 0), confidence, found.valid & known)
