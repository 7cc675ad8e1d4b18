"""EXIF orientation: cameras store the pixels as the sensor saw them, and note how to turn them.

Viewers and annotation tools show the turned, upright image. So does this package: it turns images and labels when it
decodes them, each as its own file notes, and all sizes are those of upright images.
"""

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import ExifTags, Image

UPRIGHT = 1  # the orientation of pixels that are stored as they are shown

# Step along the rows, step along the columns, then whether to swap rows and columns; by orientation.
_TURNS: Mapping[int, tuple[int, int, bool]] = MappingProxyType(
    {
        UPRIGHT: (1, 1, False),
        2: (1, -1, False),
        3: (-1, -1, False),
        4: (-1, 1, False),
        5: (1, 1, True),
        6: (-1, 1, True),
        7: (-1, -1, True),
        8: (1, -1, True),
    }
)


def orientation_of(image: Image.Image) -> int:
    """The orientation of an opened image, from its header: 1 to 8, and 1 if it has none or an invalid one.

    A PNG may have EXIF after its pixels: that is not read.
    """
    if image.format == "TIFF":
        return UPRIGHT  # PIL turns it, and gives its upright size
    # `PngImageFile.getexif` would decode the pixels to look behind them.
    return _noted(lambda: Image.Image.getexif(image)) or UPRIGHT


def jpeg_orientation(data: bytes) -> int:
    """The orientation of an encoded JPEG, as of `orientation_of`, but without opening the file where possible."""
    segment = _metadata_segment(data)
    if not segment:
        return UPRIGHT
    if segment.startswith(b"Exif\0\0") and (found := _noted(lambda: _loaded(segment))):
        return found
    try:
        with Image.open(io.BytesIO(data)) as image:
            return orientation_of(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # a decoder may read it all the same
        return UPRIGHT


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels [H, W, ...] of this orientation upright: [H, W, ...], or [W, H, ...] from 5 on."""
    if orientation == UPRIGHT:
        return pixels
    rows, columns, swapped = _TURNS[orientation]
    turned = pixels[::rows, ::columns]
    turned = turned.swapaxes(0, 1) if swapped else turned
    result = np.empty(turned.shape, turned.dtype)
    for channel in np.ndindex(turned.shape[2:]):  # several times faster than to copy triples of bytes
        result[(..., *channel)] = turned[(..., *channel)]
    return result


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The upright (height, width) of a stored size, and the stored one of an upright size."""
    height, width = size
    return (width, height) if _TURNS[orientation][2] else (height, width)


def _metadata_segment(data: bytes) -> bytes:
    """The first APP1 segment of a JPEG, which holds EXIF or XMP; all data if they cannot be walked; b"" if none."""
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1 : position + 2]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xda":  # the pixels
            return b""
        if marker == b"\xe1":  # APP1
            return data[position + 4 : position + 2 + length] or data
        position += 1 if marker == b"\xff" else 2 + length
    return data


def _loaded(segment: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(segment)
    return exif


def _noted(read: Callable[[], Image.Exif]) -> int | None:
    """The valid orientation in EXIF; None if there is none."""
    try:
        found = read().get(ExifTags.Base.Orientation)
        return found if isinstance(found, int) and found in _TURNS else None
    except Exception:  # PIL raises several types for damaged EXIF, which does not matter to the pixels
        return None
