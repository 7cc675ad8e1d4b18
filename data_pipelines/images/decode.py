"""Decodes images, label masks and confidence maps to uint8 arrays, and checks that labels are class indices."""

import contextlib
import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Fault, InputError
from data_pipelines.images.transforms import Size
from data_pipelines.sources.records import EncodedImage, Record, UnreadableError

_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_END_MARKERS = (b"\xff\xd9", b"IEND")  # of JPEG and PNG
_TAIL_BYTES = 64
_SMALLEST_FACTOR = 2  # simplejpeg: below this factor, a scaled decode may be slower than a full one
_INDEX_MODES = ("P", "L")
_MODE_FIXES = {
    "I;16": "save its indices with 8 bits",
    "I": "save its indices with 8 bits",
    "LA": "save its indices without an alpha channel",
    "PA": "save its indices without an alpha channel",
}


def decode_image(encoded: EncodedImage, at_least: Size | None = None) -> np.ndarray:
    """Decodes a photograph of any mode.

    Args:
        encoded: The photograph.
        at_least: Smallest (height, width) that is needed; None decodes at full size. A JPEG is decoded at the smallest
            of 1/2, 3/8, 1/4 and 1/8 of its size that is large enough: the decoder skips the high frequencies. Other
            images, and JPEGs less than twice as large, keep their size. If the result is resized to `at_least`,
            synthetic photographs differ from PIL's resize of the full image by 0.9 to 5 levels on average and by 6 to
            37 levels in the worst pixel, depending on size and ratio. The reference allows 0.75 and 8.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        UnreadableError: The file is missing, truncated or not an image.
    """
    data = encoded.read()
    # simplejpeg returns the same pixels as PIL, faster. It also refuses files with harmless irregularities, so PIL
    # tries every refused file again.
    if data.startswith(b"\xff\xd8"):
        try:
            height, width = at_least or (0, 0)
            return simplejpeg.decode_jpeg(
                data, min_height=height, min_width=width, min_factor=_SMALLEST_FACTOR if at_least else 1
            )
        except ValueError:
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(_eight_bits(image).convert("RGB"))
    except _DAMAGED as error:
        raise _damaged(encoded, error) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit gray levels to 8 bits; PIL would clip them at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))


def decode_label(encoded: EncodedImage, info: DatasetInfo) -> np.ndarray:
    """Decodes a label mask: a palette PNG, read as indices, or an 8-bit gray image.

    Returns:
        uint8 [H, W]: class indices below `info.num_classes`, or `info.ignore_index`.

    Raises:
        UnreadableError: The file is missing, truncated or not an image.
        InputError: The image has colors instead of indices, is a 0/255 mask, or holds an index that is not in the
            dataset.
    """
    image = _open_plane(encoded)
    plane = np.asarray(image)
    if not (image.mode == "P" and _in_range(plane, info)) and (
        fault := label_fault(_label_facts(encoded, image), info)
    ):
        raise InputError(fault.message)
    return plane


def _in_range(plane: np.ndarray, info: DatasetInfo) -> bool:
    """Whether all values are classes or the ignore index. A faster test than a histogram."""
    # The ignore index is above all classes. Modulo 256 it turns to 0, and class c to 256 - ignore_index + c.
    turned = plane - np.uint8(info.ignore_index)
    return plane.max() <= info.ignore_index and turned.max() < 256 - info.ignore_index + info.num_classes


class LabelFacts(NamedTuple):
    """Properties of a label image, valid or not.

    Attributes:
        name: Its name in error messages.
        format: PIL's name of the format: "PNG", ...
        mode: PIL's name of the pixel mode: "P", "L", "RGB", "I;16", ...
        size: (height, width).
        values: Number of pixels by value; empty if the mode has no indices.
    """

    name: str
    format: str
    mode: str
    size: Size
    values: dict[int, int]


def probe_label(encoded: EncodedImage) -> LabelFacts:
    """Reads the properties of a label image; raises `UnreadableError` if it is missing, truncated or not an image."""
    return _label_facts(encoded, _open_plane(encoded))


def label_fault(label: LabelFacts, info: DatasetInfo) -> Fault | None:
    """The fault of an invalid label image, of kind "mode", "mask" or "range"; None if it is valid for the dataset."""
    if label.mode not in _INDEX_MODES:
        message = (
            f"label image has mode {label.mode}, expected class indices as a palette (P) or 8-bit gray (L) PNG; "
            + _MODE_FIXES.get(label.mode, f"map its colors to the indices of {info.name}")
        )
        return Fault("mode", label.name, f"{label.name}: {message}")
    found = sorted(label.values)
    # A gray image of 0 and 255 is a foreground mask. A palette image of 0 and 255 is a valid label of background and
    # ignored pixels; real datasets contain such labels.
    if label.mode == "L" and 255 in found and set(found) <= {0, 255}:
        message = (
            "label image holds only the values 0 and 255, which looks like a foreground mask; "
            f"write class indices 0..{info.num_classes - 1} (if 255 does mean 'ignore' here, save a palette PNG)"
        )
        return Fault("mask", label.name, f"{label.name}: {message}")
    wrong = [value for value in found if value >= info.num_classes and value != info.ignore_index]
    if wrong:
        pixels = sum(label.values[value] for value in wrong)
        message = (
            f"label {wrong[0]} is out of range ({pixels} pixels with values "
            f"{', '.join(map(str, wrong[:8]))}): {info.name} has classes 0..{info.num_classes - 1} and ignore index "
            f"{info.ignore_index}; fix the file or set config.data.dataset"
        )
        return Fault("range", label.name, f"{label.name}: {message}")
    return None


def decode_confidence(encoded: EncodedImage) -> np.ndarray:
    """Decodes a confidence map from an 8-bit gray PNG: uint8 [H, W], 255 is certain.

    Raises:
        UnreadableError: The file is missing, truncated or not an image.
        InputError: The image is not 8-bit gray.
    """
    image = _open_plane(encoded)
    if image.mode != "L":
        raise InputError(
            f"{encoded.name}: confidence image has mode {image.mode}, expected 8-bit gray (L); "
            "label the OOD images again"
        )
    return np.asarray(image)


def image_size(encoded: EncodedImage) -> Size:
    """Reads (height, width) from the header of an image, without decoding it.

    Raises:
        UnreadableError: The file is missing or not an image.
    """
    with encoded.open() as stream:
        try:
            with Image.open(stream) as image:
                return image.height, image.width
        except _DAMAGED as error:
            raise _damaged(encoded, error) from error


class ImageFacts(NamedTuple):
    """Properties of a photograph, from its header.

    Attributes:
        name: Its name in error messages.
        format: PIL's name of the format: "JPEG", "PNG", ...
        mode: PIL's name of the pixel mode: "RGB", "L", "CMYK", ...
        size: (height, width).
        length: Length of the encoded image, bytes.
    """

    name: str
    format: str
    mode: str
    size: Size
    length: int


def probe_image(encoded: EncodedImage) -> ImageFacts:
    """Checks that an image exists and is complete, much faster than by decoding it.

    Reads the header and looks for the end marker of the format in the last bytes. Decodes the image only if one of
    them is missing or damaged.

    Raises:
        UnreadableError: The file is missing, truncated or not an image.
    """
    facts = None
    with encoded.open() as stream:
        length = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, length - _TAIL_BYTES))
        tail = stream.read()
        stream.seek(0)
        with contextlib.suppress(*_DAMAGED), Image.open(stream) as image:
            facts = ImageFacts(encoded.name, image.format or "", image.mode, (image.height, image.width), length)
    if facts is None or not any(marker in tail for marker in _END_MARKERS):
        height, width = decode_image(encoded).shape[:2]
        # simplejpeg reads some JPEGs whose header PIL refuses.
        facts = facts or ImageFacts(encoded.name, "JPEG", "RGB", (height, width), length)
    return facts


def _open_plane(encoded: EncodedImage) -> Image.Image:
    data = encoded.read()
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except _DAMAGED as error:
        raise _damaged(encoded, error) from error
    return image


def _label_facts(encoded: EncodedImage, image: Image.Image) -> LabelFacts:
    counts = image.histogram() if image.mode in _INDEX_MODES else []
    values = {value: count for value, count in enumerate(counts) if count}
    return LabelFacts(encoded.name, image.format or "", image.mode, (image.height, image.width), values)


def _damaged(encoded: EncodedImage, error: Exception) -> UnreadableError:
    # PIL's message contains the memory address of the stream.
    reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
    return UnreadableError(f"{encoded.name}: is damaged or not an image ({reason})")


def size_fault(record: Record, plane: str, image: tuple[int, ...], found: tuple[int, ...]) -> str:
    """The message that a record's label or confidence map (the name `plane`) is not as large as its image."""
    name = getattr(record, plane).name
    return (
        f"{name}: {plane} is {found[1]}x{found[0]} (width x height) but {record.image.name} is "
        f"{image[1]}x{image[0]}; write the {plane} at the size of its image"
    )
