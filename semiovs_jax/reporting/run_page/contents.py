"""What the page of a run shows beside the files in its workdir."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.checking.survey import SplitReport
from semiovs_jax.reporting.examples import Example


class Shown(NamedTuple):
    """Predicted validation images.

    Attributes:
      every_class: images that show every class.
      worst: those with the lowest mIoU, lowest first, with their mIoU.
      best: those with the highest mIoU, highest first, with their mIoU.
      label_pixels: int64 [K], pixels of each true class in the split.
    """

    every_class: Sequence[Example]
    worst: Sequence[tuple[Example, float]]
    best: Sequence[tuple[Example, float]]
    label_pixels: np.ndarray


class LabeledImage(NamedTuple):
    """An OOD image and its label.

    Attributes:
      name: its id.
      image: uint8 [H, W, 3].
      label: uint8 [H, W].
      confidence: uint8 [H, W], 255 is certain.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    confidence: np.ndarray


class OodLabels(NamedTuple):
    """Labels of the OOD images.

    Attributes:
      folder: their folder.
      sample: a few of them.
    """

    folder: Path
    sample: Sequence[LabeledImage]


class Contents(NamedTuple):
    """What the page of a run shows beside the files in its workdir.

    Attributes:
      config: values by section and key, as in config.json.
      splits: what each split holds.
      shown: validation images; None if the last logits were not finite, or the run draws no images.
      ood: labels of the OOD images; None if the run reads none from files.
    """

    config: Mapping[str, Any]
    splits: Mapping[str, SplitReport]
    shown: Shown | None
    ood: OodLabels | None
