"""Labelers: everything that turns images into pseudo-labels shares one result type."""

from typing import NamedTuple

import jax


class PseudoLabel(NamedTuple):
    """What a labeler says of a batch of images.

    Attributes:
      label: int32 [N, H, W], class indices.
      confidence: float [N, H, W] in [0, 1], the labeler's probability of `label`.
      valid: bool [N, H, W], False where the pixel must not be learned from (padding, ignore).
    """

    label: jax.Array
    confidence: jax.Array
    valid: jax.Array
