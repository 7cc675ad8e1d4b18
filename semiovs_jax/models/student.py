"""What training and evaluation ask of a student."""

from typing import Any, ClassVar, Protocol

import jax


class Student(Protocol):
    """A segmentation network.

    Attributes:
      windowed: whether images larger than a training crop are evaluated by windows of that size; otherwise a
        forward takes images of any size.
      perturbed_channels: channels of each feature level that `channel_masks` multiply.
    """

    windowed: ClassVar[bool]
    perturbed_channels: tuple[int, ...]

    def __call__(
        self, x: jax.Array, *, channel_masks: tuple[jax.Array, ...] | None = None, size: jax.Array | None = None
    ) -> jax.Array:
        """Computes logits at the resolution of the images.

        Args:
          x: normalized images [N, H, W, 3], floating point.
          channel_masks: float [m, N, C] for each of `perturbed_channels`, m >= 1. The backbone runs once; the decoder
            runs once on m variants of its features, variant i multiplied by mask i. UniMatch's feature perturbation
            is m = 2: ones, and dropout of rate 1/2 as 0 or 2.
          size: true sizes, int32 [N, 2], of images padded on the right and bottom; not for `windowed` students.

        Returns:
          logits [N, H, W, K]; with `channel_masks`, [m, N, H, W, K].
        """
        ...

    @staticmethod
    def parameter_groups(params: dict[Any, Any]) -> dict[Any, Any]:
        """The optimizer's group of every parameter: "backbone", "head" or "frozen", in the structure of `params`."""
        ...
