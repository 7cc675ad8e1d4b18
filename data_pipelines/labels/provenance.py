"""Which image a label was made from. Every label keeps this, so that it is known even if its process was killed.

FOLDER/labels/ID.png      has it as a text of the PNG
FOLDER/ovs_...json        the list of a shard has it for each label
FOLDER/adopted.npz        has it for the labels of an older version, which did not record it
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.images.checksums import ImageChecksum
from data_pipelines.labels.manifest import RUN_LABEL, read_table, write_table

KEYWORD = "semiovs_jax"  # of the text in a label PNG

_ADOPTED = "adopted.npz"


class Provenance(NamedTuple):
    """What a label was made from.

    Attributes:
        image: Checksum of the image.
        confidence: Mean confidence of the pixels with a label, in [0, 1]; 0 without such pixels, NaN if unknown.
    """

    image: ImageChecksum
    confidence: float = math.nan

    def write(self) -> str:
        """Text that `read` reads."""
        return f"{self.image.length} {self.image.crc:08x} {self.confidence:.4f}"

    @classmethod
    def read(cls, text: str) -> "Provenance":
        """Reads the text of `write`; raises ValueError if it is another text."""
        length, crc, confidence = text.split()
        return cls(ImageChecksum(int(length), int(crc, 16)), float(confidence))


def images_sha256(images: Iterable[tuple[str, ImageChecksum]]) -> str:
    """Hex SHA-256 of the ids and checksums of images, in any order."""
    lines = sorted(f"{id_} {checksum.length} {checksum.crc:08x}\n" for id_, checksum in images)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def read_adopted(folder: Path) -> dict[str, Provenance]:
    """The images of labels that an older version made, by id; raises `InputError` if the file cannot be read."""
    path = folder / _ADOPTED
    try:
        ids, rows = read_table(path, "checksums")
        return {id_: Provenance(ImageChecksum(*row)) for id_, row in zip(ids, rows[:, :2].tolist(), strict=True)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove it, then {RUN_LABEL}, which takes the images of these labels as "
            "they are now"
        ) from error


def write_adopted(folder: Path, images: Mapping[str, ImageChecksum]) -> None:
    """Writes the file that `read_adopted` reads; keeps the entries of other ids."""
    known = {id_: found.image for id_, found in read_adopted(folder).items()} | dict(images)
    checksums = np.array(list(known.values()), np.int64).reshape(-1, 2)
    write_table(folder / _ADOPTED, list(known), checksums=checksums)


def mean_confidence(found: Sequence[Provenance]) -> float | None:
    """Mean over labels; None if there is none, or if it is unknown of one."""
    values = [label.confidence for label in found]
    return None if not values or any(map(math.isnan, values)) else round(math.fsum(values) / len(values), 4)
