"""What an open-vocabulary segmentation model is, and the pseudo-labels that it makes."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np


class PseudoLabel(NamedTuple):
    """Pseudo-labels of a batch of images.

    Attributes:
      label: int32 [N, H, W], class indices.
      confidence: float [N, H, W] in [0, 1], the labeler's probability of `label`.
      valid: bool [N, H, W], False where the pixel must not be learned from (padding, ignore).
    """

    label: jax.Array
    confidence: jax.Array
    valid: jax.Array


class OVS(Protocol):
    """An open-vocabulary segmentation model with its vocabulary: a pure function and its weights.

    Attributes:
      weights: pytree, text embeddings included.
      num_classes: classes of the vocabulary.
      image_size: side of the square images the model is meant for.
      fingerprint: sha256 over all that decides its labels; it names a set of cached labels.
    """

    weights: Any
    num_classes: int
    image_size: int
    fingerprint: str

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image to the model's square input, on the host.

        Args:
          image: uint8 [H, W, 3], RGB.

        Returns:
          uint8 or float32 [S, S, 3], RGB in 0..255, of one shape and dtype for every image.
        """
        ...

    def label(
        self, weights: Any, image: jax.Array, *, label_size: tuple[int, int], size: jax.Array | None = None
    ) -> PseudoLabel:
        """Labels images.

        Args:
          weights: this model's `weights`.
          image: float [N, S, S, 3], RGB in 0..255; other sizes are resized on device.
          label_size: (height, width) of the labels.
          size: int32 [N, 2], (height, width) of each image in the top left of its label; None if it fills the label.

        Returns:
          Labels of `label_size`. Invalid outside `size`.
        """
        ...
