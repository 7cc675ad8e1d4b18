"""The label of one image, encoded, with its number of pixels per class."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo


class LabelExample(NamedTuple):
    """The label of one image.

    Attributes:
        id: Id of the image.
        label: Palette PNG of class indices.
        confidence: 8-bit gray PNG, 255 is certain.
        pixels: int32 [num_classes + 1], pixels per class; the last entry counts the pixels without a class.
    """

    id: str
    label: bytes
    confidence: bytes
    pixels: np.ndarray


def encode_label(id_: str, label: np.ndarray, confidence: np.ndarray, dataset: DatasetInfo) -> LabelExample:
    """Encodes the label and the confidence of an image, both uint8 [H, W]."""
    indexed = Image.fromarray(label)
    indexed.putpalette(dataset.palette.tobytes())  # gray levels become indices
    pixels = class_row(np.bincount(label.ravel(), minlength=256), dataset.num_classes)
    return LabelExample(id_, _png(indexed), _png(Image.fromarray(confidence)), pixels)


def class_row(counts: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels per class and without a class, int32 [num_classes + 1], from pixels per label value, [256]."""
    counts = np.asarray(counts)
    return np.append(counts[:num_classes], counts[num_classes:].sum()).astype(np.int32)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
