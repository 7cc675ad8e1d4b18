"""PIL's resize, pixel for pixel, computed only for a window of the result.

PIL computes the whole result, and a crop throws most of it away. PIL's `box` argument cannot select the window: it
stores corners in single precision, which changes some pixels. This module repeats the arithmetic of
`src/libImaging/Resample.c` and `Geometry.c` of Pillow: 22-bit weights, the horizontal pass first, rounded to 8 bits
between the passes.
"""

import math
import threading

import numpy as np
from PIL import Image
from scipy.sparse import csr_array

_WEIGHT_BITS = 22
_LARGEST_SHRINK = 2.0

_local = threading.local()


def bilinear_window(
    image: np.ndarray, size: tuple[int, int], rows: slice, columns: slice, *, mirrored: bool = False
) -> np.ndarray:
    """A window of PIL's `resize(size, BILINEAR)`, which averages where it shrinks.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the whole result.
        rows: Rows of the result to return.
        columns: Columns of the result to return.
        mirrored: Whether to return the columns in reverse order.

    Returns:
        uint8 [rows, columns, 3].
    """
    if _is_for_pil(image.shape[:2], size):
        whole = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))[rows, columns]
        return whole[:, ::-1] if mirrored else whole
    top, vertical = _weights(image.shape[0], size[0], rows)
    left, horizontal = _weights(image.shape[1], size[1], columns, reverse=mirrored)
    height, width = vertical.shape[1], horizontal.shape[1]
    window = image[top : top + height, left : left + width]
    # Each product mixes the rows of its right operand: first the columns of the image, then its rows. Copying one
    # channel at a time is several times faster than copying triples of bytes.
    lines = _work_array((width, 3, height))
    for channel in range(3):
        lines[:, channel] = window[..., channel].T
    mixed = _rounded(horizontal @ lines.reshape(width, -1)).reshape(-1, 3, height)
    lines = _work_array((height, mixed.shape[0], 3))
    for channel in range(3):
        lines[..., channel] = mixed[:, channel].T
    return _rounded(vertical @ lines.reshape(height, -1)).astype(np.uint8).reshape(-1, *lines.shape[1:])


def nearest_window(
    plane: np.ndarray, size: tuple[int, int], rows: slice, columns: slice, *, mirrored: bool = False
) -> np.ndarray:
    """A window of PIL's `resize(size, NEAREST)`: [H, W] to [rows, columns] of the same type.

    Takes the arguments of `bilinear_window`.
    """
    y, x = _nearest(plane.shape[0], size[0], rows), _nearest(plane.shape[1], size[1], columns)
    return plane[y].take(x[::-1] if mirrored else x, axis=1)


def _is_for_pil(source: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether PIL computes the whole result instead, in one of two cases.

    A window needs so much of the source that its integers would take too much memory and time. Or Pillow (since 13)
    does the vertical pass first, because the height shrinks more than twice as much as the width.
    """
    shrunk = source[0] - size[0], source[1] - size[1]
    factor = max(source[0] / size[0], source[1] / size[1])
    return factor > _LARGEST_SHRINK or shrunk[0] > max(0, 2 * shrunk[1])


def _weights(source: int, size: int, window: slice, *, reverse: bool = False) -> tuple[int, csr_array]:
    """Weights of the source lines, for a window of the result of a resize from `source` to `size` lines.

    Returns:
        The first source line needed, and int32 [window, source lines needed].
    """
    scale = source / size
    support = max(scale, 1.0)
    center = (np.arange(window.start, window.stop) + 0.5) * scale
    if reverse:
        center = center[::-1]
    first = np.maximum(center - support + 0.5, 0).astype(np.int32)
    last = np.minimum(center + support + 0.5, source).astype(np.int32)
    position = first[:, None] + np.arange((last - first).max(), dtype=np.int32)
    weight = np.maximum(1 - abs((position - center[:, None] + 0.5) * (1 / support)), 0)
    inside = position < last[:, None]
    weight *= inside
    total = np.zeros(len(center))
    for column in weight.T:  # PIL's order of summation decides the last bit
        total += column
    fixed = (weight / total[:, None] * 2**_WEIGHT_BITS + 0.5).astype(np.int32)
    lowest = int(first.min())
    ends = np.concatenate(([0], np.cumsum(last - first, dtype=np.int32)), dtype=np.int32)
    shape = (len(center), int(last.max()) - lowest)
    return lowest, csr_array((fixed[inside], position[inside] - lowest, ends), shape=shape)


def _work_array(shape: tuple[int, ...]) -> np.ndarray:
    """A per-thread int32 scratch buffer; the next call overwrites it. A new one would cost more than its use."""
    size = math.prod(shape)
    if getattr(_local, "work", np.empty(0)).size < size:
        _local.work = np.empty(size, np.int32)
    return _local.work[:size].reshape(shape)


def _rounded(sums: np.ndarray) -> np.ndarray:
    """Rounds fixed-point sums to whole levels, in place."""
    sums += 1 << (_WEIGHT_BITS - 1)
    sums >>= _WEIGHT_BITS
    return sums


def _nearest(source: int, size: int, window: slice) -> np.ndarray:
    """The source line of each line of the window. Adds up steps as PIL does: their rounding decides ties."""
    scale = source / size
    steps = np.full(window.stop, scale)
    steps[0] = scale / 2
    return np.cumsum(steps)[window.start :].astype(np.intp)
