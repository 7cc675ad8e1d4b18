"""Segmentation metrics: a confusion matrix, counted on the device, and its scores, computed on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 8192  # pixels of an image that are counted at a time


def confusion_matrix(label: jax.Array, prediction: jax.Array, valid: jax.Array, num_classes: int) -> jax.Array:
    """The sum of `confusion_matrices`: int32 [K, K], exact for batches below 2**31 pixels."""
    return confusion_matrices(label, prediction, valid, num_classes).sum(0)


def confusion_matrices(label: jax.Array, prediction: jax.Array, valid: jax.Array, num_classes: int) -> jax.Array:
    """Counts the pixels of each (true, predicted) pair of classes, image by image.

    Exact for images below 2**31 pixels. Sum the matrices of images in int64 on the host: the counts of a whole dataset
    may exceed int32.

    Args:
      label: int [N, H, W], true classes; values of invalid pixels are not used.
      prediction: int [N, H, W].
      valid: bool [N, H, W]; False pixels are not counted.
      num_classes: K.

    Returns:
      int32 [N, K, K], rows by true class, columns by predicted class. A pixel with a class outside 0..K-1 is dropped.
    """
    n = label.shape[0]
    label = jnp.where(valid, label.astype(jnp.int32), -1)
    chunks = (_chunks(label), _chunks(prediction.astype(jnp.int32)))
    classes = jnp.arange(num_classes, dtype=jnp.int32)

    def add(counts: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        is_label, is_prediction = ((plane[..., None] == classes).astype(jnp.float32) for plane in chunk)
        # A matrix product, because scatter-adds are slow on accelerators. Products of 0 and 1 are exact at any
        # precision, and float32 counts a chunk exactly.
        found = jnp.einsum("npk,npj->nkj", is_label, is_prediction, precision=jax.lax.Precision.DEFAULT)
        return counts + found.astype(jnp.int32), None

    counts, _ = jax.lax.scan(add, jnp.zeros((n, num_classes, num_classes), jnp.int32), chunks)
    return counts


def _chunks(plane: jax.Array) -> jax.Array:
    """[N, H, W] as [number of chunks, N, pixels of a chunk], filled up with -1."""
    n, pixels = plane.shape[0], plane[0].size
    size = min(_CHUNK, pixels)
    filled = jnp.pad(plane.reshape(n, -1), ((0, 0), (0, -pixels % size)), constant_values=-1)
    return filled.reshape(n, -1, size).swapaxes(0, 1)


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
