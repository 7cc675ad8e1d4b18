"""Measures of a prediction image by image, and of all images together. Computed on the host, from class indices."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.evaluation import metrics
from semiovs_jax.evaluation.boundary import BoundaryCounts, boundary_iou, count_boundaries
from semiovs_jax.evaluation.calibration import Calibration, bin_sums, calibration


class ImagePrediction(NamedTuple):
    """The prediction of one image.

    Attributes:
      position: index of the image in its split.
      label: uint8 [H, W], true classes with the dataset's ignore index.
      prediction: uint8 [H, W].
      confidence: float32 [H, W], the highest probability of each pixel.
    """

    position: int
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray


class ImageMeasures(NamedTuple):
    """Of the pixels of one image that have a label; None where there are none.

    Attributes:
      position: index of the image in its split.
      miou: mean IoU over the classes that are in the label or the prediction.
      pixel_accuracy: share of pixels with the right prediction.
      confidence: mean confidence.
    """

    position: int
    miou: float | None
    pixel_accuracy: float | None
    confidence: float | None


class Measures(NamedTuple):
    """Measures of a split.

    Attributes:
      confusion: int64 [K, K], pixels by true class (rows) and predicted class.
      boundary_iou: float64 [K], NaN for absent classes; see `boundary`.
      calibration: over the pixels that have a label.
      images: every image, in the order of the split.
      worst: predictions of the images with the lowest mIoU, lowest first.
      best: those with the highest mIoU, highest first.
    """

    confusion: np.ndarray
    boundary_iou: np.ndarray
    calibration: Calibration
    images: tuple[ImageMeasures, ...]
    worst: tuple[ImagePrediction, ...]
    best: tuple[ImagePrediction, ...]


def measure(predictions: Iterable[ImagePrediction], dataset: DatasetInfo, *, examples: int = 12) -> Measures:
    """Measures a split.

    Args:
      predictions: of all images, in any order; few of them are kept.
      dataset: class count and ignore index.
      examples: largest number of worst and of best images; fewer where an image would be both.
    """
    classes = dataset.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    boundaries = BoundaryCounts(*np.zeros((2, classes), np.int64))
    sums: np.ndarray | float = bin_sums(np.zeros(0), np.zeros(0, bool))
    images: list[ImageMeasures] = []
    worst, best = _Ranking(examples), _Ranking(examples)
    for predicted in predictions:
        valid = predicted.label != dataset.ignore_index
        counts = count_pairs(predicted.label[valid], predicted.prediction[valid], classes)
        boundary = count_boundaries(predicted.label, predicted.prediction, valid, classes)
        confidence = predicted.confidence[valid]
        confusion += counts
        boundaries = BoundaryCounts(*(total + new for total, new in zip(boundaries, boundary, strict=True)))
        sums = sums + bin_sums(confidence, (predicted.label == predicted.prediction)[valid])
        images.append(image := _measure_image(predicted.position, counts, confidence))
        if image.miou is not None:
            worst.add(image.miou, predicted)
            best.add(-image.miou, predicted)
    images.sort(key=lambda image: image.position)
    ranked = sum(image.miou is not None for image in images)
    shown = min(examples, max(1, ranked // 2))
    return Measures(
        confusion,
        boundary_iou(boundaries),
        calibration(np.asarray(sums)),
        tuple(images),
        worst.first(shown),
        best.first(shown),
    )


def count_pairs(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the pixels of each (true, predicted) pair: int64 [K, K], from classes int [N]."""
    pairs = label.astype(np.int64) * num_classes + prediction
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _measure_image(position: int, confusion: np.ndarray, confidence: np.ndarray) -> ImageMeasures:
    if not confidence.size:
        return ImageMeasures(position, None, None, None)
    scores = metrics.scores(confusion)
    mean = float(confidence.mean(dtype=np.float64))
    return ImageMeasures(position, scores.mean_iou_present, scores.pixel_accuracy, mean)


class _Ranking:
    """The few predictions of lowest rank."""

    def __init__(self, length: int):
        self._length = length
        self._entries: list[tuple[float, int, ImagePrediction]] = []

    def add(self, rank: float, predicted: ImagePrediction) -> None:
        self._entries.append((rank, predicted.position, predicted))
        self._entries.sort(key=lambda entry: entry[:2])
        del self._entries[self._length :]

    def first(self, count: int) -> tuple[ImagePrediction, ...]:
        return tuple(predicted for *_, predicted in self._entries[:count])
