"""Validation images with their labels and predictions, chosen to show every class or by their scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax.evaluation.measures import ImagePrediction
from semiovs_jax.reporting.panels import draw_panel

_WELL_SHOWN = 0.02  # share of an image from which a larger class is not shown better
_WIDTH = 240  # pixels of a picture


class Example(NamedTuple):
    """A predicted validation image.

    Attributes:
      name: its id.
      image: uint8 [H, W, 3].
      label: uint8 [H, W], true classes with the dataset's ignore index.
      prediction: uint8 [H, W].
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray


def images_of_all_classes(label_pixels: np.ndarray, least: int, most: int) -> list[int]:
    """Chooses images that show every class, if `most` of them can. The choice depends on the labels alone.

    Each image is the one that shows best what those before it do not show. Where they show all classes and are fewer
    than `least`, further images show them once more.

    Args:
      label_pixels: int [N, K], pixels of each true class in each image.
      least: number of images, if there are as many.
      most: largest number of images.

    Returns:
      Positions of images, in the order of their choice.
    """
    total = np.maximum(label_pixels.sum(1, keepdims=True), 1)
    shown_by = np.minimum(label_pixels / total / _WELL_SHOWN, 1)
    shown = np.zeros(label_pixels.shape[1])
    chosen: list[int] = []
    left = np.ones(len(label_pixels), bool)
    while left.any() and len(chosen) < most:
        gains = np.where(left, np.maximum(shown_by - shown, 0).sum(1), -1)
        best = int(gains.argmax())
        if gains[best] <= 0:
            if len(chosen) >= least:
                break
            if shown.any():
                shown[:] = 0
                continue
        chosen.append(best)
        left[best] = False
        shown = np.maximum(shown, shown_by[best])
    return chosen


def make_examples(predictions: Iterable[ImagePrediction], records: ValidationRecords) -> dict[int, Example]:
    """Examples by the position of their images, which are decoded again.

    Raises:
      InputError: an image cannot be read.
    """
    ids = records.ids()
    return {
        at: Example(ids[at], records[at]["image"], predicted.label, predicted.prediction)
        for predicted in predictions
        for at in [predicted.position]
    }


def draw_examples(
    examples: Sequence[Example], predictions: Mapping[str, Sequence[np.ndarray]], dataset: DatasetInfo
) -> np.ndarray:
    """Draws images beside their ground truth and predictions, with a legend.

    Args:
      examples: the images, a row for each.
      predictions: by the title of their column, class indices of every example.
      dataset: class names and palette.

    Returns:
      uint8 [height, width, 3].
    """
    columns = {
        "image": [example.image for example in examples],
        "ground truth": [example.label for example in examples],
    }
    return draw_panel({**columns, **predictions}, dataset, width=_WIDTH)


def lowest_and_highest(miou: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Positions of the images with the lowest mIoU, lowest first, and the highest, highest first; none in both.

    Args:
      miou: float [N]; images with NaN are left out.
      count: largest number of each.
    """
    order = np.argsort(miou, kind="stable")[: np.count_nonzero(~np.isnan(miou))].tolist()
    shown = min(count, max(1, len(order) // 2))
    return order[:shown], order[::-1][: min(shown, len(order) - shown)]
