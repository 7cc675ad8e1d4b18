"""Labels laid over their images."""

import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo

_DARKEST, _DIMMED = 45, 0.35  # gray of a black pixel under a label, and the share of the image's brightness above it
_OPACITY = 0.7  # of the colors of classes
_STRIPE = 4  # pixels
_VOID = np.array([[255, 255, 255], [190, 190, 190]], np.float32)  # the two colors of its stripes
_NO_IMAGE = 128


def overlay(label: np.ndarray, dataset: DatasetInfo, image: np.ndarray | None = None) -> np.ndarray:
    """Colors of classes over a dimmed gray image; background shows the image alone, ignored pixels are hatched.

    Args:
      label: int [H, W], with the dataset's ignore index.
      dataset: palette, background and ignore index.
      image: uint8 [H, W, 3]; None for an even gray.

    Returns:
      uint8 [H, W, 3].
    """
    label = np.asarray(label).astype(np.uint8)
    gray = np.full(label.shape, _NO_IMAGE, np.uint8)
    if image is not None:
        gray = np.asarray(Image.fromarray(image).convert("L"))
    base = _DARKEST + _DIMMED * gray.astype(np.float32)[..., None]
    opacity = np.full(256, _OPACITY, np.float32)
    if dataset.background is not None:
        opacity[dataset.background] = 0
    mixed = base + opacity[label][..., None] * (dataset.palette[label].astype(np.float32) - base)
    row, column = np.indices(label.shape)
    stripes = _VOID[(row + column) // _STRIPE % 2]
    return np.where((label == dataset.ignore_index)[..., None], stripes, mixed).round().astype(np.uint8)
