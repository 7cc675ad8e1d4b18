"""Logits of images that share a padded shape: those of every image alone, without padding.

Evaluation and prediction use the same functions. The protocol is in `config.eval`: images as they are or with their
short side at `short_side` px, whole or in windows whose logits are averaged, in one view or in several (`scales`,
`flip`) whose probabilities are averaged.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.images.transforms import short_side_size
from semiovs_jax import augment
from semiovs_jax.evaluation.buckets import Size
from semiovs_jax.evaluation.sliding import sliding_logits
from semiovs_jax.evaluation.views import Outcome, Views, mirror
from semiovs_jax.models import Functional
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.models.precision import full_precision

_ONE_VIEW = Views()


class Inference(NamedTuple):
    """A student and how it sees an image.

    Attributes:
      student: the student as a pure function.
      short_side: of the images that the student sees, in pixels; 0 for images of their own size.
      window: side of sliding windows, in pixels; 0 for whole images.
      stride: distance of windows, in pixels.
      views: what is averaged.
    """

    student: Functional
    short_side: int = 0
    window: int = 0
    stride: int = 1
    views: Views = _ONE_VIEW

    @classmethod
    def create(cls, student: Functional, config: ml_collections.ConfigDict) -> "Inference":
        """The inference that `config.eval` describes."""
        return cls(student, config.short_side, config.window, config.stride, Views.create(config))

    def input_size(self, size: Size, scale: float = 1.0) -> Size:
        """The size at which the student sees an image of `size`; its sides are at least those of a window."""
        seen = short_side_size(size, self.short_side) if self.short_side else size
        if min(seen) < self.window:
            seen = short_side_size(seen, self.window)
        if scale == 1:
            return seen
        factor = max(scale, self.window / min(seen))
        height, width = (max(1, self.window, round(side * factor)) for side in seen)
        return height, width

    def input_shape(self, shape: Size, scale: float, multiple: int) -> Size:
        """The padded shape of the student's inputs at a scale.

        Args:
          shape: of the inputs at scale 1.
          scale: a factor.
          multiple: see `Student.size_multiple`.

        Returns:
          A shape that holds the inputs of all images whose inputs at scale 1 are in `shape`.
        """
        if scale == 1:
            return shape
        factor = max(scale, 1.0) if self.window else scale  # images of a window's size are not seen smaller
        height, width = (-(-(round(side * factor) + 1) // multiple) * multiple for side in shape)
        return height, width

    def classify(
        self,
        params: Any,
        batch_stats: Any,
        image: jax.Array,
        size: jax.Array,
        *,
        input_size: jax.Array | None,
        input_shape: Size,
        size_multiple: int,
        resized: bool,
    ) -> Outcome:
        """Computes the class of every pixel of a batch by all views.

        Args:
          params: parameters of the student.
          batch_stats: its running statistics.
          image: see `logits`.
          size: see `logits`.
          input_size: int32 [N, S, 2], `input_size` of every image at each of the views' scales; None if no view is
            resized.
          input_shape: padded shape of the inputs at scale 1.
          size_multiple: see `Student`.
          resized: whether the student sees the images at another size than their own at scale 1.
        """
        score = probability = jnp.zeros(())
        finite = jnp.ones((), bool)
        for i, scale in enumerate(self.views.scales):
            resize: dict[str, Any] = {}
            if resized or scale != 1:
                assert input_size is not None
                shape = self.input_shape(input_shape, scale, size_multiple)
                resize = {"input_size": input_size[:, i], "input_shape": shape}
            for mirrored in self.views.mirrored:
                turn = (lambda x: mirror(x, size)) if mirrored else (lambda x: x)
                logits = full_precision(self.logits(params, batch_stats, turn(image), size, **resize))
                finite &= turn(jnp.isfinite(logits).all(-1, keepdims=True))[..., 0]
                probability += turn(jax.nn.softmax(logits))
                score = logits
        if self.views.total > 1:
            probability /= self.views.total
            score = probability
        return Outcome(score, probability, finite)

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
        """Computes the logits of every pixel of a batch in one view.

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
