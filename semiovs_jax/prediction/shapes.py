"""Chooses the few padded shapes on which images of any size are predicted.

All sizes of one call are known together, so they share at most `maximum` shapes. Later calls may bring other sizes:
they use a known shape, or one of those that are left. The last one is a square that covers all sizes seen so far. An
image larger than it replaces it by a larger square, whose side grows by a third or more: the number of compilations
grows with the logarithm of the longest side.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from semiovs_jax.evaluation.buckets import DEFAULT_MULTIPLE, Size, bucket_of, choose_buckets

_MOST_PADDING = 4  # area of a shape over that of an image, while shapes are left


class Shape(NamedTuple):
    """A padded shape.

    Attributes:
      image: of images and their predictions.
      input: of the images as the student sees them, at scale 1.
      resized: whether the student sees the images at another size than their own.
    """

    image: Size
    input: Size
    resized: bool


class Shapes:
    """The known shapes, at most `maximum` at a time."""

    def __init__(self, input_size: Callable[[Size], Size], maximum: int, size_multiple: int):
        """Knows no shape yet.

        Args:
          input_size: the size at which the student sees an image of a size.
          maximum: number of shapes.
          size_multiple: see `Student`; the sides of inputs are multiples of it.
        """
        self._input_size = input_size
        self._maximum = maximum
        self._multiple = -(-DEFAULT_MULTIPLE // size_multiple) * size_multiple
        self._longest = Shape((1, 1), (1, 1), False)  # the square of the longest side seen so far
        self.known: list[Shape] = []

    def provide(self, sizes: Sequence[Size]) -> list[Shape]:
        """A shape for each image, out of `known` after this call.

        Args:
          sizes: (height, width) of the images.
        """
        if not sizes:
            return []
        self._note(sizes)
        if missing := [size for size in dict.fromkeys(sizes) if self._shape_of(size) is None]:
            left = self._maximum - len(self.known)
            if not self.known:
                self.known = self._choose(missing, self._maximum)
            elif left > 1:
                self.known += self._choose(missing, left - 1)
            else:
                self.known = [*self.known[: self._maximum - 1], self._covering()]
            self.known.sort(key=lambda shape: shape.image[0] * shape.image[1])
        found = [self._shape_of(size, last_resort=True) for size in sizes]
        return [shape for shape in found if shape is not None]

    def _shape_of(self, size: Size, last_resort: bool = False) -> Shape | None:
        """The smallest known shape for an image; None if there is none, or one of its own would save much padding."""
        seen = self._input_size(size)
        for shape in self.known:
            if _holds(shape.image, size) and _holds(shape.input, seen) and (shape.resized or seen == size):
                padding = shape.image[0] * shape.image[1] / max(size[0] * size[1], self._multiple**2)
                wasteful = padding > _MOST_PADDING and self._maximum - len(self.known) > 1
                return None if wasteful and not last_resort else shape
        return None

    def _choose(self, sizes: Sequence[Size], maximum: int) -> list[Shape]:
        """At most `maximum` shapes in which little is padding, as evaluation chooses them."""
        inputs = [self._input_size(size) for size in sizes]
        shapes = choose_buckets(inputs, maximum, self._multiple)
        members: dict[Size, list[int]] = {}
        for i, seen in enumerate(inputs):
            members.setdefault(shapes[bucket_of(seen, shapes)], []).append(i)
        found = []
        for shape, indices in members.items():
            resized = any(inputs[i] != sizes[i] for i in indices)
            image = _enclosing([sizes[i] for i in indices]) if resized else shape
            found.append(Shape(image, shape, resized))
        return found

    def _note(self, sizes: Sequence[Size]) -> None:
        inputs = [self._input_size(size) for size in sizes]
        image, seen = (
            max(before[0], *(side for size in found for side in size))
            for before, found in ((self._longest.image, sizes), (self._longest.input, inputs))
        )
        resized = self._longest.resized or list(sizes) != inputs
        self._longest = Shape((image, image), (seen, seen), resized)

    def _covering(self) -> Shape:
        """A square for all images seen so far, and for somewhat larger ones."""
        image, seen = (_roomy(shape[0], self._multiple) for shape in self._longest[:2])
        return Shape((image, image), (seen, seen), self._longest.resized)


def _holds(shape: Size, size: Size) -> bool:
    return size[0] <= shape[0] and size[1] <= shape[1]


def _enclosing(sizes: Sequence[Size]) -> Size:
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _roomy(side: int, multiple: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, ... times `multiple` that is not below `side`."""
    power = multiple
    while 2 * power < side:
        power *= 2
    return next(length for length in (power, power * 3 // 2, 2 * power) if length >= side and length % multiple == 0)
