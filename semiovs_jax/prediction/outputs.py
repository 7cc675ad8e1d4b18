"""The folder of predictions.

    DIR/labels/ID.png        class indices, a PNG with the dataset's palette
    DIR/confidence/ID.png    8-bit gray, 255 is certain
    DIR/overlay/ID.jpg       the classes but the background in their colors over the image
    DIR/predictions.json     which weights and settings made them: other ones are refused
    DIR/predictions.csv      a line for each image, written at the end
    DIR/contact_sheet.html   see `contact_sheet`, written at the end

Files are written atomically, the label last: an image that has one is finished. The label keeps the checksum of its
image, so that a replaced image is predicted again. Labels and confidences may serve as labels of OOD images
(`config.ovs.labels=external`).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import as_path, read_json, remove_abandoned_parts, replace_file
from data_pipelines.images.checksums import ImageChecksum
from data_pipelines.images.png import read_texts
from data_pipelines.labels.examples import encode_label
from data_pipelines.labels.provenance import KEYWORD, Provenance
from semiovs_jax.prediction.predictor import Prediction

MANIFEST = "predictions.json"
TABLE = "predictions.csv"

_OVERLAY_OPACITY = 0.55
_REMEDY = "choose another --out"


class Paths(NamedTuple):
    """The files of one image."""

    label: Path
    confidence: Path
    overlay: Path


class Outputs:
    """The folder of predictions, see the module."""

    def __init__(self, folder: str | Path, dataset: DatasetInfo):
        self.folder = as_path(folder, "--out")
        self._dataset = dataset

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Claims the folder for predictions of these weights and settings.

        Args:
          identity: what decides the predictions, as JSON keeps it.

        Raises:
          InputError: the folder has predictions of others or other files, or cannot be read or written.
        """
        path = self.folder / MANIFEST
        try:
            before = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise InputError(f"--out={self.folder}: holds files but no {MANIFEST}; {_REMEDY}") from None
            replace_file(path, json.dumps(identity, indent=1) + "\n", remedy=_REMEDY)
            return
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}, or remove {self.folder}") from error
        before = before if isinstance(before, dict) else {}
        keys = dict.fromkeys([*before, *identity])
        if changed := [key for key in keys if before.get(key) != identity.get(key)]:
            shown = "; ".join(f"{key} was {before.get(key)!r}, is {identity.get(key)!r}" for key in changed)
            raise InputError(f"--out={self.folder}: holds other predictions ({shown}); {_REMEDY}, or remove this one")
        remove_abandoned_parts(self.folder)

    def paths(self, id_: str) -> Paths:
        """The files of an image."""
        return Paths(
            self.folder / "labels" / f"{id_}.png",
            self.folder / "confidence" / f"{id_}.png",
            self.folder / "overlay" / f"{id_}.jpg",
        )

    def found(self, id_: str) -> Provenance | None:
        """What the prediction of an image was made from; None if it is missing or damaged."""
        paths = self.paths(id_)
        try:
            if not (paths.confidence.is_file() and paths.overlay.is_file()):
                return None
            return Provenance.read(read_texts(paths.label.read_bytes())[KEYWORD])
        except (OSError, ValueError, KeyError):
            return None

    def write(self, id_: str, checksum: ImageChecksum, image: np.ndarray, prediction: Prediction) -> float:
        """Writes the files of an image, and returns its mean confidence as `found` gives it.

        Args:
          id_: id of the image.
          checksum: of the image.
          image: uint8 [H, W, 3].
          prediction: of the image.

        Raises:
          InputError: a file cannot be written.
        """
        confidence = np.round(255 * prediction.confidence).astype(np.uint8)
        encoded = encode_label(id_, prediction.label, confidence, self._dataset, checksum)
        paths = self.paths(id_)
        replace_file(paths.overlay, self._overlay(image, prediction.label), remedy=_REMEDY)
        replace_file(paths.confidence, encoded.confidence, remedy=_REMEDY)
        replace_file(paths.label, encoded.label, remedy=_REMEDY)
        assert encoded.provenance is not None
        return encoded.provenance.confidence

    def write_table(self, rows: Sequence[tuple[str, str, float]]) -> Path:
        """Writes the table: id, name of the image, mean confidence. Returns its path."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "image", "mean_confidence", "label"])
        for id_, name, confidence in rows:
            label = self.paths(id_).label.relative_to(self.folder).as_posix()
            writer.writerow([id_, name, f"{confidence:.4f}", label])
        content = text.getvalue().encode(errors="backslashreplace")
        replace_file(self.folder / TABLE, content, remedy=_REMEDY)
        return self.folder / TABLE

    def _overlay(self, image: np.ndarray, label: np.ndarray) -> bytes:
        opacity = np.full(256, _OVERLAY_OPACITY, np.float32)
        if self._dataset.background is not None:
            opacity[self._dataset.background] = 0
        mixed = image + opacity[label][..., None] * (self._dataset.palette[label].astype(np.float32) - image)
        buffer = io.BytesIO()
        Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, format="JPEG", quality=90)
        return buffer.getvalue()
