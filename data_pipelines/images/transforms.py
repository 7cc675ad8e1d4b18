"""Random scale, crop and flip on the host, with the draws and the arithmetic of the reference.

`draw_geometry` is random; all other functions depend only on their arguments. The reference is `dataset/transform.py`
of wooseok-shin/SemiOVS (and UniMatch before it): PIL bilinear for images, nearest for labels, padding only on the right
and at the bottom. SemiVL's scale rule is from its `dataset/semi.py`.
"""

import dataclasses

import numpy as np
from PIL import Image

from data_pipelines.images.resampling import bilinear_window, nearest_window

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A random view of an image.

    Attributes:
        size: (height, width) of the image after resizing.
        y: First row of the crop in the resized, padded image.
        x: First column of the crop.
        flip: Whether the crop is mirrored left to right.
    """

    size: Size
    y: int
    x: int
    flip: bool = False


def scaled_size(height: int, width: int, long_side: int) -> Size:
    """The size whose long side is `long_side`; the short side is rounded half up."""
    if height > width:
        return long_side, max(1, int(width * long_side / height + 0.5))
    return max(1, int(height * long_side / width + 0.5)), long_side


def fitted_size(size: Size, long_side: float, short_side: float) -> Size:
    """The largest size of the same aspect ratio within these sides, rounded half up as in mmcv's `imrescale`."""
    ratio = min(long_side / max(size), short_side / min(size))
    height, width = (max(1, int(side * ratio + 0.5)) for side in size)
    return height, width


def short_side_size(size: Size, short_side: int) -> Size:
    """The size of the same aspect ratio whose short side is `short_side`, as in mmseg's `Resize(min_size=short_side)`.

    The long side has no limit.
    """
    return fitted_size(size, short_side * max(size) / min(size), short_side)


def draw_geometry(
    rng: np.random.Generator,
    size: Size,
    crop_size: int,
    scale_range: tuple[float, float],
    scale_short_side: int = 0,
) -> Geometry:
    """Draws a view: size, crop column, crop row and flip, each uniform, in the order of the reference.

    Args:
        rng: The generator to draw from.
        size: (height, width) of the image.
        crop_size: Side of the square crop.
        scale_range: Smallest and largest ratio of the new long side to the old one, both inclusive.
        scale_short_side: 0, or SemiVL's rule: `scale_range` is the range of a factor, and the image is fitted into
            (4 * scale_short_side, scale_short_side) times this factor, truncated to whole pixels. For 512 this is
            mmseg's `Resize(img_scale=(2048, 512), ratio_range=scale_range)`. SemiVL resizes with cv2, without
            antialiasing; this code uses PIL under both rules.
    """
    if scale_short_side:
        low_factor, high_factor = scale_range
        factor = low_factor + (high_factor - low_factor) * rng.random()
        resized = fitted_size(size, int(4 * scale_short_side * factor), int(scale_short_side * factor))
    else:
        low, high = (max(1, int(max(size) * ratio)) for ratio in scale_range)
        resized = scaled_size(*size, int(rng.integers(low, high, endpoint=True)))
    x = int(rng.integers(0, max(resized[1] - crop_size, 0), endpoint=True))
    y = int(rng.integers(0, max(resized[0] - crop_size, 0), endpoint=True))
    return Geometry(resized, y, x, bool(rng.random() < 0.5))


def view_image(image: np.ndarray, geometry: Geometry, crop_size: int) -> np.ndarray:
    """The view of an image: uint8 [H, W, 3] to uint8 [crop_size, crop_size, 3]; padding is 0."""
    shown = bilinear_window(image, geometry.size, *view_window(geometry, crop_size), mirrored=geometry.flip)
    return pad_view(shown, geometry, crop_size, 0)


def view_plane(plane: np.ndarray, geometry: Geometry, crop_size: int, fill: int) -> np.ndarray:
    """The view of a label mask or confidence map: uint8 [H, W] to [crop_size, crop_size]; padding is `fill`."""
    shown = nearest_window(plane, geometry.size, *view_window(geometry, crop_size), mirrored=geometry.flip)
    return pad_view(shown, geometry, crop_size, fill)


def view_valid(geometry: Geometry, crop_size: int) -> np.ndarray:
    """The pixels of a view inside the image: bool [crop_size, crop_size], False on padding."""
    rows, columns = view_window(geometry, crop_size)
    shown = np.ones((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    return pad_view(shown, geometry, crop_size, False)


def view_window(geometry: Geometry, crop_size: int) -> tuple[slice, slice]:
    """The rows and columns of the resized image in a view."""
    height, width = geometry.size
    y, x = geometry.y, geometry.x
    return slice(y, min(y + crop_size, height)), slice(x, min(x + crop_size, width))


def pad_view(shown: np.ndarray, geometry: Geometry, crop_size: int, fill: int) -> np.ndarray:
    """Pads a crop, already mirrored, to the size of the view: [H, W, ...] to [crop_size, crop_size, ...].

    Padding is at the bottom and on the right; in a mirrored view, on the left.
    """
    height, width = shown.shape[:2]
    if height == width == crop_size:
        return shown
    padded = np.full((crop_size, crop_size, *shown.shape[2:]), fill, shown.dtype)
    left = crop_size - width if geometry.flip else 0
    padded[:height, left : left + width] = shown
    return padded


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Bilinear resize with PIL: [H, W, 3] uint8 to [size, 3] uint8."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
