"""Test-time augmentation: the views of an image, and the class of each pixel by all of them together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections


class Views(NamedTuple):
    """The views of an image whose softmax probabilities are averaged.

    Attributes:
      scales: factors of the size at which the student sees the image.
      flip: whether each is seen mirrored left to right, too.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def create(cls, config: ml_collections.ConfigDict) -> "Views":
        """The views that `config.eval` describes."""
        return cls(tuple(float(scale) for scale in config.scales), config.flip)

    @property
    def mirrored(self) -> tuple[bool, ...]:
        """Of the views of one scale: which are mirrored."""
        return (False, True) if self.flip else (False,)

    @property
    def total(self) -> int:
        """Number of views."""
        return len(self.scales) * len(self.mirrored)

    def describe(self) -> str:
        """The views, in the words of a protocol."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        if self.total == 1:
            return "single scale, no flip" if self.scales == (1.0,) else f"single scale {scales}, no flip"
        flips = "each also mirrored" if self.flip else "no flip"
        return f"mean probabilities of {self.total} views: scale{'s' * (len(self.scales) > 1)} {scales}, {flips}"


class Outcome(NamedTuple):
    """What is known of every pixel of a batch; values outside of the true sizes have no meaning.

    Attributes:
      score: [N, H, W, K]; the class of a pixel is that of the highest score. Logits of a single view, since
        probabilities of two classes may round to one value where their logits differ; of several views, `probability`.
      probability: [N, H, W, K], softmax probabilities, the mean of all views.
      finite: bool [N, H, W], whether the logits of all views are finite.
    """

    score: jax.Array
    probability: jax.Array
    finite: jax.Array


def mirror(x: jax.Array, size: jax.Array) -> jax.Array:
    """Mirrors images left to right within their true widths.

    Args:
      x: [N, H, W, C], images in the top left of their padded shape.
      size: int32 [N, 2], true heights and widths.
    """
    column = jnp.arange(x.shape[2])
    width = size[:, 1:]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(x, source[:, None, :, None], axis=2)
