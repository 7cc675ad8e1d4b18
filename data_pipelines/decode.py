"""From encoded bytes to uint8 arrays, refusing label images that are not planes of class indices."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.sources import Encoded, UnreadableError
from data_pipelines.transforms import Size

_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_END_MARKERS = (b"\xff\xd9", b"IEND")  # of JPEG and PNG
_TAIL_BYTES = 64


def decode_image(encoded: Encoded) -> np.ndarray:
    """Decodes a photograph of any mode.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        UnreadableError: The file is missing, truncated or no image.
    """
    data = encoded.read()
    # simplejpeg gives PIL's pixels sooner. It refuses harmless irregularities as well as damage, so PIL judges
    # what it refuses.
    if data.startswith(b"\xff\xd8"):
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError:
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except _DAMAGED as error:
        raise UnreadableError(f"{encoded.name}: is damaged or not an image ({error})") from error


def decode_label(encoded: Encoded, info: DatasetInfo) -> np.ndarray:
    """Decodes a label image: a palette PNG, read as indices, or an 8-bit gray image.

    Returns:
        uint8 [H, W], class indices below `info.num_classes` or `info.ignore_index`.

    Raises:
        UnreadableError: The file is missing, truncated or no image.
        InputError: The image has colors instead of indices, is a 0/255 mask, or holds an index that the
            dataset does not have.
    """
    image = _open_plane(encoded)
    if image.mode not in ("P", "L"):
        raise InputError(
            f"{encoded.name}: label image has mode {image.mode}, expected class indices as a palette (P) or "
            f"8-bit gray (L) PNG; map its colors to the indices of {info.name}"
        )
    count = image.histogram()
    found = [value for value in range(256) if count[value]]
    # A gray image of 0 and 255 is a foreground mask. In the dataset's own palette it is a label that holds
    # background and unlabeled pixels only, which real label sets contain.
    if image.mode == "L" and 255 in found and set(found) <= {0, 255}:
        raise InputError(
            f"{encoded.name}: label image holds only the values 0 and 255, which looks like a foreground mask; "
            f"write class indices 0..{info.num_classes - 1} (if 255 does mean 'ignore' here, save a palette PNG)"
        )
    wrong = [value for value in found if value >= info.num_classes and value != info.ignore_index]
    if wrong:
        pixels = sum(count[value] for value in wrong)
        raise InputError(
            f"{encoded.name}: label {wrong[0]} is out of range ({pixels} pixels with values "
            f"{', '.join(map(str, wrong[:8]))}): {info.name} has classes 0..{info.num_classes - 1} and ignore index "
            f"{info.ignore_index}; mend the file or set config.data.dataset"
        )
    return np.asarray(image)


def decode_confidence(encoded: Encoded) -> np.ndarray:
    """Decodes a confidence plane: uint8 [H, W] from an 8-bit gray PNG, 255 is certain.

    Raises:
        UnreadableError: The file is missing, truncated or no image.
        InputError: The image is not 8-bit gray.
    """
    image = _open_plane(encoded)
    if image.mode != "L":
        raise InputError(
            f"{encoded.name}: confidence image has mode {image.mode}, expected 8-bit gray (L); label again"
        )
    return np.asarray(image)


def image_size(encoded: Encoded) -> Size:
    """Reads (height, width) from an image's header, without decoding it.

    Raises:
        UnreadableError: The file is missing or no image.
    """
    with encoded.open() as stream:
        try:
            with Image.open(stream) as image:
                return image.height, image.width
        except _DAMAGED as error:
            raise UnreadableError(f"{encoded.name}: is damaged or not an image ({error})") from error


def ensure_complete(encoded: Encoded) -> None:
    """Makes sure that a photograph is there and not cut short, in a fraction of the time of decoding it.

    Looks for the format's end marker in the last bytes, and decodes the image only where there is none.

    Raises:
        UnreadableError: The file is missing, truncated or no image.
    """
    with encoded.open() as stream:
        length = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, length - _TAIL_BYTES))
        tail = stream.read()
    if not any(marker in tail for marker in _END_MARKERS):
        decode_image(encoded)


def _open_plane(encoded: Encoded) -> Image.Image:
    data = encoded.read()
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except _DAMAGED as error:
        raise UnreadableError(f"{encoded.name}: is damaged or not an image ({error})") from error
    return image
