"""Logits of images that share a padded shape: those of every image alone, without padding.

Evaluation and prediction use the same function. The protocol is in `config.eval`: images as they are or with their
short side at `short_side` px, whole or in windows whose logits are averaged.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.images.transforms import short_side_size
from semiovs_jax import augment
from semiovs_jax.evaluation.buckets import Size
from semiovs_jax.evaluation.sliding import sliding_logits
from semiovs_jax.models import Functional
from semiovs_jax.models.layers import resize_bilinear


class Inference(NamedTuple):
    """A student and how it sees an image.

    Attributes:
      student: the student as a pure function.
      short_side: of the images that the student sees, in pixels; 0 for images of their own size.
      window: side of sliding windows, in pixels; 0 for whole images.
      stride: distance of windows, in pixels.
    """

    student: Functional
    short_side: int = 0
    window: int = 0
    stride: int = 1

    @classmethod
    def create(cls, student: Functional, config: ml_collections.ConfigDict) -> "Inference":
        """The inference that `config.eval` describes."""
        return cls(student, config.short_side, config.window, config.stride)

    def input_size(self, size: Size) -> Size:
        """The size at which the student sees an image of `size`."""
        return short_side_size(size, self.short_side) if self.short_side else size

    def logits(
        self,
        params: Any,
        batch_stats: Any,
        image: jax.Array,
        size: jax.Array,
        *,
        input_size: jax.Array | None = None,
        input_shape: Size | None = None,
    ) -> jax.Array:
        """Computes the logits of every pixel of a batch.

        Args:
          params: parameters of the student.
          batch_stats: its running statistics.
          image: uint8 [N, H, W, 3], images in the top left of their padded shape.
          size: int32 [N, 2], true sizes of the images; at least `window` where images are not resized.
          input_size: int32 [N, 2], sizes to which images are resized for the student; None where they are not resized.
          input_shape: padded shape of the resized images, with `input_size`.

        Returns:
          [N, H, W, K], at the true sizes; values outside of them have no meaning.
        """
        seen, seen_size = augment.as_float(image), size
        if input_size is not None:
            assert input_shape is not None
            seen, seen_size = resize_levels(seen, input_shape, size, input_size), input_size
        seen = augment.normalize(seen)
        if self.window:
            logits = sliding_logits(
                lambda x: self.student.apply(params, batch_stats, x, train=False)[0],
                seen,
                window=self.window,
                stride=self.stride,
                size=seen_size,
            )
        else:
            logits, _ = self.student.apply(params, batch_stats, seen, train=False, size=seen_size)
        if input_size is not None:
            _, height, width, _ = image.shape
            logits = resize_bilinear(
                logits, (height, width), align_corners=True, source_size=input_size, target_size=size
            )
        return logits


def resize_levels(image: jax.Array, shape: Size, source_size: jax.Array, target_size: jax.Array) -> jax.Array:
    """Resizes 8-bit images as the reference does with cv2: bilinear without antialiasing, rounded to whole levels.

    cv2's fixed-point arithmetic is not reproduced: one pixel in twenty differs from cv2's by one level.

    Args:
      image: float [N, h, w, C], whole levels 0..255.
      shape: padded shape of the result.
      source_size: int32 [N, 2], true sizes of the images.
      target_size: int32 [N, 2], true sizes of the result.

    Returns:
      float [N, *shape, C], whole levels; zero outside the true size.
    """
    resized = resize_bilinear(image, shape, align_corners=False, source_size=source_size, target_size=target_size)
    # Values halfway between two levels, frequent at simple ratios of sizes, are rounded up in spite of rounding errors:
    # a level must not depend on the padded shape or the device.
    return jnp.floor(resized + (0.5 + 1e-3))
