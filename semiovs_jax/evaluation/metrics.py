"""Segmentation metrics: a confusion matrix, counted on the device, and its scores, computed on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(label: jax.Array, prediction: jax.Array, valid: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each (true, predicted) pair of classes.

    Sum the matrices of batches in int64 on the host: the counts of a whole dataset may exceed int32.

    Args:
      label: int [N, H, W], true classes; values of invalid pixels are not used.
      prediction: int [N, H, W].
      valid: bool [N, H, W]; False pixels are not counted.
      num_classes: K.

    Returns:
      int32 [K, K], rows by true class, columns by predicted class. A pixel with a class outside 0..K-1 is dropped.
    """
    n = label.shape[0]
    classes = jnp.arange(num_classes)
    is_label = (label[..., None] == classes) & valid[..., None]
    is_prediction = prediction[..., None] == classes
    # A matrix product, because scatter-adds are slow on accelerators. Each image is counted separately: float32 counts
    # are exact below 2**24 pixels.
    is_label, is_prediction = (v.reshape(n, -1, num_classes).astype(jnp.float32) for v in (is_label, is_prediction))
    counts = jnp.einsum("npk,npj->nkj", is_label, is_prediction)
    return counts.astype(jnp.int32).sum(0)


class Scores(NamedTuple):
    """Scores of a confusion matrix, all in 0..1.

    Attributes:
      iou: float64 [K], intersection over union of each class; 0 for absent classes.
      present: bool [K], False for absent classes, which are neither in the labels nor in the predictions.
      mean_iou: mean over all classes, with absent ones as 0 (the reference's mIoU).
      mean_iou_present: mean over the present classes; 0 if there are none.
      pixel_accuracy: share of valid pixels with the right prediction; 0 if there are none.
    """

    iou: np.ndarray
    present: np.ndarray
    mean_iou: float
    mean_iou_present: float
    pixel_accuracy: float


def scores(confusion: np.ndarray) -> Scores:
    """Computes the scores of a confusion matrix (int [K, K], rows by true class)."""
    confusion = np.asarray(confusion, np.int64)
    intersection = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    present = union > 0
    iou = intersection / np.maximum(union, 1)
    return Scores(
        iou=iou,
        present=present,
        mean_iou=float(iou.mean()),
        mean_iou_present=float(iou.sum() / max(present.sum(), 1)),
        pixel_accuracy=float(intersection.sum() / max(confusion.sum(), 1)),
    )
