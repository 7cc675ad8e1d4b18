"""Buckets: a few padded shapes for images of many sizes, so that a jitted function compiles only a few times."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Size = tuple[int, int]  # height, width

DEFAULT_MULTIPLE = 32  # pixels; a smaller value saves little padding


def choose_buckets(sizes: Iterable[Size], maximum: int, multiple: int = DEFAULT_MULTIPLE) -> list[Size]:
    """Chooses at most `maximum` shapes such that every image fits one and little area is padding.

    Starts with the sizes, rounded up. Then joins the two shapes whose union adds the fewest padded pixels over all
    their images, until at most `maximum` shapes are left.

    Args:
      sizes: (height, width) of every image.
      maximum: largest number of shapes, at least 1.
      multiple: heights and widths are rounded up to multiples of it.

    Returns:
      Shapes (height, width) by increasing area; empty if there are no images.
    """
    counts = Counter((_round_up(height, multiple), _round_up(width, multiple)) for height, width in sizes)
    shapes = np.array(sorted(counts), np.int64).reshape(-1, 2)
    weights = np.array([counts[height, width] for height, width in shapes.tolist()], np.int64)
    while len(shapes) > maximum:
        union = np.maximum(shapes[:, None], shapes[None]).prod(axis=-1)
        areas = shapes.prod(axis=-1)
        added = weights[:, None] * (union - areas[:, None]) + weights[None] * (union - areas[None])
        added[np.tril_indices(len(shapes))] = np.iinfo(np.int64).max
        first, second = np.unravel_index(int(added.argmin()), added.shape)
        shapes[first] = np.maximum(shapes[first], shapes[second])
        weights[first] += weights[second]
        shapes, weights = np.delete(shapes, second, axis=0), np.delete(weights, second)
    return sorted(
        {(height, width) for height, width in shapes.tolist()}, key=lambda shape: (shape[0] * shape[1], shape)
    )


def bucket_of(size: Size, buckets: Sequence[Size]) -> int:
    """Index of the first bucket that is large enough for an image of `size`."""
    return next(i for i, (height, width) in enumerate(buckets) if size[0] <= height and size[1] <= width)


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
