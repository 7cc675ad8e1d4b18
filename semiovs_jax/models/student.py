"""What training and evaluation ask of a student."""

from typing import Any, ClassVar, Protocol

import jax


class Student(Protocol):
    """A segmentation network that trains with a perturbed twin.

    Attributes:
      windowed: whether images larger than a training crop are evaluated by windows of that size; otherwise a
        forward takes images of any size.
      perturbed_channels: channels of each feature level that a perturbed forward drops from.
    """

    windowed: ClassVar[bool]
    perturbed_channels: tuple[int, ...]

    def __call__(
        self, x: jax.Array, *, keep: tuple[jax.Array, ...] | None = None, size: jax.Array | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Logits [N, H, W, K] of normalized images [N, H, W, 3]; with `keep`, a pair of them: clean, perturbed.

        Args:
          x: normalized images, floating point.
          keep: channels to keep, bool [N, C] for each of `perturbed_channels`; asks for the perturbed twin.
          size: true sizes, int32 [N, 2], of images padded on the right and bottom; not for `windowed` students.
        """
        ...

    @staticmethod
    def parameter_groups(params: dict[Any, Any]) -> dict[Any, Any]:
        """The optimizer's group of every parameter: "backbone", "head" or "frozen", in the structure of `params`."""
        ...
