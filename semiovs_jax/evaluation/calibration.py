"""Calibration: whether predictions with confidence p are right in a share p of the pixels."""

from typing import NamedTuple

import numpy as np

BINS = 15


class Bin(NamedTuple):
    """The pixels whose confidence is above `low` and at most `high`.

    Attributes:
      low: lower end.
      high: upper end.
      pixels: their number.
      confidence: their mean confidence; None without pixels.
      accuracy: share of them with the right prediction; None without pixels.
    """

    low: float
    high: float
    pixels: int
    confidence: float | None
    accuracy: float | None


class Calibration(NamedTuple):
    """Reliability by confidence.

    Attributes:
      ece: expected calibration error, the mean of |accuracy - confidence| of the bins weighted by their pixels (Guo et
        al., ICML 2017, arXiv 1706.04599); 0 without pixels.
      bins: `BINS` bins of equal width, by increasing confidence.
    """

    ece: float
    bins: tuple[Bin, ...]


def bin_sums(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Sums over pixels by their confidence; those of images are added up.

    Args:
      confidence: float [N], in 0..1.
      correct: bool [N], whether the prediction is right.

    Returns:
      float64 [3, BINS]: pixels, their confidences, and how many are right.
    """
    index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return np.stack([np.bincount(index, weights, minlength=BINS) for weights in (None, confidence, correct)])


def calibration(sums: np.ndarray) -> Calibration:
    """The calibration of all pixels in the sums of `bin_sums`."""
    pixels, confidences, correct = sums
    ece = np.abs(correct - confidences).sum() / max(pixels.sum(), 1)
    edges = np.arange(BINS + 1) / BINS
    bins = (
        Bin(low, high, int(n), confidence / n if n else None, right / n if n else None)
        for low, high, n, confidence, right in zip(
            *(column.tolist() for column in (edges[:-1], edges[1:], pixels, confidences, correct)), strict=True
        )
    )
    return Calibration(float(ece), tuple(bins))
