"""Evaluates the labels of an OVS on labeled images."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from semiovs_jax.evaluation.metrics import Scores, confusion_matrix, scores
from semiovs_jax.ovs.base import OVS


def label_quality(
    model: OVS, samples: Iterable[tuple[np.ndarray, np.ndarray]], label_size: tuple[int, int], ignore_index: int
) -> Scores:
    """Scores a model's labels at full resolution.

    Args:
      model: the model with its vocabulary.
      samples: images uint8 [H, W, 3] and their true labels uint8 [H, W], class indices or `ignore_index`.
      label_size: (height, width) to which labels are padded; at least the size of the largest image.
      ignore_index: the label of pixels to leave out.
    """

    @jax.jit
    def count_pixels(weights: Any, image: jax.Array, label: jax.Array, valid: jax.Array, size: jax.Array) -> jax.Array:
        found = model.label(weights, image, label_size=label_size, size=size)
        return confusion_matrix(label, found.label, valid & found.valid, model.num_classes)

    confusion = np.zeros((model.num_classes, model.num_classes), np.int64)
    for image, label in tqdm(samples, desc="label held-out images", unit="image"):
        height, width = label.shape
        padded = np.full(label_size, ignore_index, np.int32)
        padded[:height, :width] = label
        square = model.preprocess(image).astype(np.float32)
        valid = padded != ignore_index
        size = np.array([[height, width]], np.int32)
        confusion += np.asarray(count_pixels(model.weights, square[None], padded[None], valid[None], size))
    return scores(confusion)
