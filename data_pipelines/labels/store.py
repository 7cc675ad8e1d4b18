"""Where labeling keeps its labels: what made them, and how far it has got.

    LABELS_DIR/manifest.json       the model that labels, and, once finished, counts, bad images, pixels by class,
                                   library versions, and the last run's images and seconds
    LABELS_DIR/contact_sheet.html  a sample to look at, see `contact_sheet`

and the labels themselves: as files (`data_pipelines.labels.cache`) for images in a folder, as shards
(`data_pipelines.labels.shards`) for images in shards; whichever is there already goes on being used. An image's id is
its path below the OOD root without suffix, or its `id` in the shards. Files appear whole or not at all, so that the
presence of a label, or of a shard's list, means that it is done, whatever was killed when.
"""

import abc
import contextlib
import importlib.metadata
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import remove_abandoned_parts
from data_pipelines.labels.cache import open_label_cache, unsettled
from data_pipelines.labels.files import FileLabels, plane_path
from data_pipelines.labels.manifest import (
    FILES,
    LABEL_AGAIN,
    MANIFEST,
    class_row,
    read_manifest,
    write_class_pixels,
    write_whole,
)

_VERSION = 1
_LIBRARIES = ("semiovs-jax", "jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")


class LabelStore(abc.ABC):
    """A folder of cached labels that is being written.

    Attributes:
      form: how the labels are kept, "files" or "shards".
      folder: the folder, `config.ovs.labels_dir`.
      identity: what made the labels, for a person to read; "fingerprint" decides whether they are stale.
      dataset: classes and palette of the labels.
    """

    form: str

    def __init__(self, folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo):
        self.folder = folder
        self.identity = identity
        self.dataset = dataset

    def open(self) -> dict[str, Any] | None:
        """Reads the manifest; None if nothing was labeled yet.

        Raises:
          InputError: the labels were made by another model, vocabulary or setting, or the manifest is missing
            or damaged.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            patterns = {
                "labels/**/*.png": "labels",
                "dataset_info.json": "a dataset",
                "*/dataset_info.json": "a dataset",
            }
            for pattern, what in patterns.items():
                if any(self.folder.glob(pattern)):
                    raise InputError(f"{self.folder}: holds {what} without {MANIFEST}; {LABEL_AGAIN}")
        elif manifest.get("fingerprint") != self.identity["fingerprint"]:
            differences = _differences(manifest, self.identity)
            raise InputError(f"{self.folder}: stale labels, made otherwise: {differences}; {LABEL_AGAIN}")
        return manifest

    def begin(self) -> None:
        """Marks the folder as this model's and unfinished, unless it is this model's already."""
        if self.open() is None:
            self._write_manifest({"finished": False})

    def finish(self, ids: Sequence[str], last_run: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the pixels per class, then the finished manifest, and returns it; one that already says so is kept.

        Args:
          ids: all images; each has a label or is bad.
          last_run: facts of the run that ends now, plain data.
        """
        remove_abandoned_parts(self.folder)
        form_state = self._finish_form()
        cache = open_label_cache(self.folder)
        labeled = [id_ for id_ in ids if cache.is_labeled(id_)]
        known, reasons = set(labeled), cache.bad
        bad = {id_: reasons[id_] for id_ in ids if id_ not in known}
        pixels = np.stack([self._pixels(id_) for id_ in labeled] or [class_row([0] * 256, self.dataset.num_classes)])
        pixels = pixels[: len(labeled)]
        write_class_pixels(self.folder, labeled, pixels)
        totals = pixels.sum(0, dtype=np.int64).tolist()
        state = {
            "finished": True,
            "counts": {"images": len(ids), "labeled": len(labeled), "bad": len(bad)},
            "bad": bad,
            "pixels": dict(zip((*self.dataset.classes, "ignored"), totals, strict=True)),
            **form_state,
        }
        manifest = self.open() or {}
        if manifest.items() >= state.items():
            return manifest
        return self._write_manifest({**state, "versions": _versions(), "last_run": dict(last_run)})

    def finished(self, ids: Sequence[str]) -> bool:
        """Whether each image, by whichever process, has a label or is bad."""
        return not unsettled(open_label_cache(self.folder), ids)

    def write(self, id_: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """Keeps both planes, uint8 [H, W], of one image."""
        indexed = Image.fromarray(label)
        indexed.putpalette(self.dataset.palette.tobytes())  # gray levels become indices
        row = class_row(np.bincount(label.ravel(), minlength=256), self.dataset.num_classes)
        self._write_planes(id_, _png(indexed), _png(Image.fromarray(confidence)), row)

    @abc.abstractmethod
    def has_work(self, ids: Sequence[str]) -> bool:
        """Whether images lack a label, bad ones included, which may have been mended."""

    @abc.abstractmethod
    def is_labeled(self, id_: str) -> bool:
        """Whether the image needs no label any more."""

    @abc.abstractmethod
    def write_bad(self, id_: str, reason: str) -> None:
        """Notes why an image cannot be labeled."""

    @abc.abstractmethod
    def part_length(self, count: int) -> int | None:
        """Images that are to be written together, out of `count`; None where each is written by itself."""

    @abc.abstractmethod
    def plan(self, parts: Sequence[Sequence[str]]) -> None:
        """Takes note which images, labeled, bad or neither, are to be written together."""

    @abc.abstractmethod
    def is_written(self, part: int) -> bool:
        """Whether nothing but newly labeled images can be a reason to write a part of the plan."""

    @abc.abstractmethod
    def write_part(self, part: int) -> None:
        """Writes a part of the plan, whose images have been written or noted as bad."""

    @abc.abstractmethod
    def _write_planes(self, id_: str, label: bytes, confidence: bytes, pixels: np.ndarray) -> None: ...

    @abc.abstractmethod
    def _finish_form(self) -> dict[str, Any]:
        """Does what is left to do once all is labeled; what the manifest has to say of it."""

    @abc.abstractmethod
    def _pixels(self, id_: str) -> np.ndarray:
        """Pixels per class of an image that has its label, int32 [num_classes + 1]."""

    def _write_manifest(self, state: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {"version": _VERSION, **self.identity, "form": self.form, **state}
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        return manifest


class FileStore(LabelStore):
    """Labels in files of their own, each written as soon as it is known, its label last."""

    form = FILES

    def __init__(self, folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo):
        super().__init__(folder, identity, dataset)
        self._labels = FileLabels(folder)
        self._rows: dict[str, np.ndarray] = {}  # of the images labeled now

    def has_work(self, ids: Sequence[str]) -> bool:
        """Whether images lack a label, bad ones included, which may have been mended."""
        return any(not self.is_labeled(id_) for id_ in ids)

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        return self._labels.is_labeled(id_)

    def write_bad(self, id_: str, reason: str) -> None:
        """Notes why an image cannot be labeled."""
        write_whole(self._bad_path(id_), reason)

    def part_length(self, count: int) -> int | None:
        """None: each is written by itself."""
        return None

    def plan(self, parts: Sequence[Sequence[str]]) -> None:
        """Images are written by themselves."""

    def is_written(self, part: int) -> bool:
        """Images are written by themselves."""
        return True

    def write_part(self, part: int) -> None:
        """Images are written by themselves."""

    def _write_planes(self, id_: str, label: bytes, confidence: bytes, pixels: np.ndarray) -> None:
        write_whole(plane_path(self.folder, "confidence", id_), confidence)
        write_whole(plane_path(self.folder, "labels", id_), label)
        self._bad_path(id_).unlink(missing_ok=True)
        self._rows[id_] = pixels

    def _finish_form(self) -> dict[str, Any]:
        return {}

    def _pixels(self, id_: str) -> np.ndarray:
        if id_ not in self._rows:
            path = plane_path(self.folder, "labels", id_)
            try:
                with Image.open(path) as image:
                    self._rows[id_] = class_row(image.histogram()[:256], self.dataset.num_classes)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: damaged label ({error}); remove the file to label it again") from error
        return self._rows[id_]

    def _bad_path(self, id_: str) -> Path:
        return self.folder / "bad" / f"{id_}.txt"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    """Versions of the libraries that decide labels, as far as they are installed as packages."""
    versions = {}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two identities, one "key was X, is Y" each, the fingerprint only if nothing else does."""
    facts = [key for key in wanted if key != "fingerprint" and found.get(key) != wanted[key]]
    return ", ".join(f"{key} was {found.get(key)}, is {wanted[key]}" for key in facts or ["fingerprint"])
