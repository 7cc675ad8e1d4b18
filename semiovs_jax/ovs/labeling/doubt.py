"""Warnings about OVS labels that may be worthless: weights for another task, and labels of low confidence."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from semiovs_jax.weights.files import read_metadata
from semiovs_jax.weights.parts import weights_path

LEAST_CONFIDENCE = 0.3  # the shipped SED: mean 1.00 on its own shapes, median 0.16 on photographs

_DRAWN = "drawn scenes"  # in the metadata "source" of the shipped weights

_log = logging.getLogger(__name__)


def training_doubt(section: str, weights: str, dataset: DatasetInfo) -> str | None:
    """A warning about weights of drawn shapes for a dataset with other classes; None if there is no doubt.

    Args:
      section: the section of the config, for the message.
      weights: its `weights`.
      dataset: the classes to label.
    """
    try:
        metadata = read_metadata(weights_path(weights))
    except InputError:  # the check of the weights reports it
        return None
    if _DRAWN not in metadata.get("source", ""):
        return None
    try:
        known = list(json.loads(metadata["held_out_iou"]))
    except (KeyError, ValueError, TypeError):
        return None
    if unknown := [name for name in dataset.classes if name not in known]:
        return (
            f"config.{section}.weights={weights}: this small model is trained on drawn shapes ({first_few(known, 9)}), "
            f"and labels of {first_few(unknown, 3)} are noise; use it for the embedded benchmark alone, and convert a "
            "published model for other data (python -m semiovs_jax.convert)"
        )
    return None


def confidence_doubt(manifest: Mapping[str, Any], folder: Path) -> str | None:
    """A warning about finished labels with a low mean confidence; None if it is higher or not recorded."""
    mean = manifest.get("mean_confidence")
    if not isinstance(mean, int | float) or mean >= LEAST_CONFIDENCE:
        return None
    return (
        f"{folder}: the mean confidence of the labels is {mean:.2f}; below {LEAST_CONFIDENCE}, the model often knows "
        "neither the images nor the words: look at contact_sheet.html before you train on them"
    )
