"""The label of one image, encoded, with its number of pixels per class."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_pipelines.datasets import DatasetInfo
from data_pipelines.images.checksums import ImageChecksum
from data_pipelines.labels.provenance import KEYWORD, Provenance


class LabelExample(NamedTuple):
    """The label of one image.

    Attributes:
        id: Id of the image.
        label: Palette PNG of class indices.
        confidence: 8-bit gray PNG, 255 is certain.
        pixels: int32 [num_classes + 1], pixels per class; the last entry counts the pixels without a class.
        provenance: What the label was made from; None if unknown.
    """

    id: str
    label: bytes
    confidence: bytes
    pixels: np.ndarray
    provenance: Provenance | None = None


def encode_label(
    id_: str,
    label: np.ndarray,
    confidence: np.ndarray,
    dataset: DatasetInfo,
    image: ImageChecksum | None = None,
) -> LabelExample:
    """Encodes the label and the confidence of an image, both uint8 [H, W].

    Args:
        id_: Id of the image.
        label: Class indices, or the ignore index.
        confidence: 255 is certain.
        dataset: Classes and palette.
        image: Checksum of the image; the label PNG keeps it as a text. None if unknown.
    """
    indexed = Image.fromarray(label)
    indexed.putpalette(dataset.palette.tobytes())  # gray levels become indices
    pixels = class_row(np.bincount(label.ravel(), minlength=256), dataset.num_classes)
    provenance, texts = None, PngInfo()
    if image is not None:
        certain = confidence[label < dataset.num_classes]
        provenance = Provenance(image, round(float(certain.mean()) / 255, 4) if certain.size else 0.0)
        texts.add_text(KEYWORD, provenance.write())
    return LabelExample(id_, _png(indexed, texts), _png(Image.fromarray(confidence)), pixels, provenance)


def class_row(counts: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels per class and without a class, int32 [num_classes + 1], from pixels per label value, [256]."""
    counts = np.asarray(counts)
    return np.append(counts[:num_classes], counts[num_classes:].sum()).astype(np.int32)


def _png(image: Image.Image, texts: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=texts)
    return buffer.getvalue()
