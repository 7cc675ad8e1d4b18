"""Boundary IoU: the IoU of the pixels near the contours of masks (Cheng et al., CVPR 2021, arXiv 2103.16562)."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

WIDTH_SHARE = 0.02  # of the image's diagonal, as in the paper

_NO_CLASS, _OUTSIDE = -1, -2


class BoundaryCounts(NamedTuple):
    """Of each class, in pixels near its contours: int64 [K] each. Counts of images are added up."""

    intersection: np.ndarray
    union: np.ndarray


def boundary_width(height: int, width: int) -> int:
    """Width of the boundary of an image's masks in pixels, at least 1."""
    return max(1, round(WIDTH_SHARE * float(np.hypot(height, width))))


def boundary_of(classes: np.ndarray, width: int) -> np.ndarray:
    """The pixels that are at most `width` away from a pixel of another class or from the outside of the image.

    It is what `width` erosions with a square of 3x3 pixels remove from the mask of each class, as in the paper's code.

    Args:
      classes: int [H, W].
      width: distance in pixels, along the axes or diagonals.

    Returns:
      bool [H, W].
    """
    size = 2 * width + 1
    lowest = ndimage.minimum_filter(classes, size, mode="constant", cval=_OUTSIDE)
    highest = ndimage.maximum_filter(classes, size, mode="constant", cval=_OUTSIDE)
    return lowest != highest


def count_boundaries(label: np.ndarray, prediction: np.ndarray, valid: np.ndarray, num_classes: int) -> BoundaryCounts:
    """Counts the pixels of an image that are near the contours of each class.

    Invalid pixels belong to no mask, neither of the label nor of the prediction: otherwise the ignored lines around
    objects would make a perfect prediction wrong.

    Args:
      label: int [H, W], true classes.
      prediction: int [H, W].
      valid: bool [H, W].
      num_classes: K.
    """
    width = boundary_width(*label.shape)
    planes = (np.where(valid, plane.astype(np.int16), _NO_CLASS) for plane in (label, prediction))
    true, predicted = (np.where(boundary_of(plane, width), plane, _NO_CLASS) for plane in planes)
    intersection = _pixels(true[true == predicted], num_classes)
    return BoundaryCounts(intersection, _pixels(true, num_classes) + _pixels(predicted, num_classes) - intersection)


def boundary_iou(counts: BoundaryCounts) -> np.ndarray:
    """Float64 [K], NaN for classes without a contour in the labels and the predictions."""
    with np.errstate(invalid="ignore"):
        return counts.intersection / counts.union


def _pixels(classes: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(classes[classes != _NO_CLASS], minlength=num_classes)
