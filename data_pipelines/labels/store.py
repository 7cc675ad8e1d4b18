"""Writes cached OVS labels, and the manifest that records which model made them and how many are done.

    LABELS_DIR/manifest.json       model, vocabulary, settings, device kind and matmul precision; once finished, also
                                   counts, bad images, pixels per class, mean confidence, a digest of the labeled
                                   images, library versions, and the images and seconds of the last run
    LABELS_DIR/contact_sheet.html  a page of sample images, see `contact_sheet`

The labels are files (`data_pipelines.labels.files`) if the images are files, and shards
(`data_pipelines.labels.shards`) if the images are in shards. A folder that holds labels keeps its form. The id of an
image is its path below the OOD root without suffix, or its `id` in the shards. All files are written atomically: a
label file, or the list of a shard, is complete if it exists, even if its process was killed.
"""

import abc
import contextlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import remove_abandoned_parts
from data_pipelines.labels.cache import RecordedLabels, open_label_cache, unsettled
from data_pipelines.labels.examples import LabelExample, class_row
from data_pipelines.labels.files import FileLabels, bad_path, plane_path
from data_pipelines.labels.manifest import (
    FILES,
    LABEL_AGAIN,
    MANIFEST,
    read_manifest,
    unlisted_content,
    write_class_pixels,
    write_whole,
)
from data_pipelines.labels.provenance import Provenance, images_sha256, mean_confidence, write_adopted
from data_pipelines.labels.verify import Verified

_VERSION = 1
_LIBRARIES = ("semiovs-jax", "jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")
_WRITERS = 16  # threads: network file systems have a high latency
_DEVICE, _PRECISION = "device", "matmul_precision"  # facts of a manifest that older versions do not record
_HEX = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")

_log = logging.getLogger(__name__)


class LabelStore(abc.ABC):
    """A folder of cached labels, open for writing.

    Several processes may write to one folder: each calls `divide` with the same images and writes other parts.

    Attributes:
        form: Form of the labels, "files" or "shards".
        folder: The folder, `config.ovs.labels_dir`.
        identity: Facts about the model, recorded in the manifest. Labels with another "fingerprint" or
            "matmul_precision" are stale. "device" is the kind of the devices that label.
        dataset: Classes and palette of the labels.
        unusable: Ids of images whose labels do not count, see `Verified.unusable`: they are made again.
    """

    form: str

    def __init__(self, folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo):
        self.folder = folder
        self.identity = identity
        self.dataset = dataset
        self.unusable: frozenset[str] = frozenset()

    def open(self) -> dict[str, Any] | None:
        """Reads the manifest; None if the folder holds no labels yet.

        Raises:
            InputError: The labels were made by another model, vocabulary or setting, or the manifest is missing
                or damaged.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            if fault := unlisted_content(self.folder):
                raise InputError(fault)
            return None
        precision = self.identity.get(_PRECISION)
        if (manifest.get("fingerprint"), manifest.get(_PRECISION, precision)) != (
            self.identity["fingerprint"],
            precision,
        ):
            differences = _differences(manifest, self.identity)
            raise InputError(f"{self.folder}: stale labels, made otherwise: {differences}; {LABEL_AGAIN}")
        return manifest

    def begin(self) -> None:
        """Writes an unfinished manifest, unless the folder has a manifest of this model already."""
        if self.open() is None:
            self._write_manifest({"finished": False})

    def other_device(self) -> str:
        """The kind of the devices that made the labels, if it is not that of this process; "" if it is, or unknown."""
        device = (read_manifest(self.folder) or {}).get(_DEVICE, "")
        return "" if device == self.identity.get(_DEVICE) else device

    def adopt(self, verified: Verified) -> None:
        """Records the images of labels that do not record them, and the state of images in shards."""
        if verified.adopted:
            write_adopted(self.folder, verified.adopted)
            _log.info(
                "%s: %d label(s) of an older version do not record their images: the images are taken as those that "
                "were labeled",
                self.folder,
                len(verified.adopted),
            )
        manifest = self.open()
        if manifest is None or not manifest["finished"]:
            return
        known = {"images_stamp": verified.stamp} if verified.stamp else {}
        if verified.checked == manifest.get("counts", {}).get("labeled"):
            known["images_sha256"] = verified.images_sha256
        known = {key: value for key, value in known.items() if value}
        if not manifest.items() >= known.items():
            write_whole(self.folder / MANIFEST, json.dumps(manifest | known, indent=2) + "\n")

    @abc.abstractmethod
    def is_labeled(self, id_: str) -> bool:
        """Whether the image has a usable label."""

    @abc.abstractmethod
    def divide(self, groups: Sequence[Sequence[str]], batch_size: int) -> list[list[str]]:
        """Divides all images into parts, each written by one call of `write_part`.

        Args:
            groups: Ids of the images that may share a batch, one sequence for each image shape.
            batch_size: Number of images that are labeled together.

        Returns:
            Ids of each part, in the order of `groups`.
        """

    @abc.abstractmethod
    def write_part(self, part: int, labels: Sequence[LabelExample], bad: Mapping[str, str]) -> None:
        """Writes the labels of a part.

        Args:
            part: Index of the part, see `divide`.
            labels: New labels of the part; labels that exist already are left out.
            bad: Why an image of the part cannot be labeled, by id.

        Raises:
            InputError: A file cannot be written.
        """

    def finished(self, ids: Sequence[str]) -> bool:
        """Whether each image has a label or is bad, including those of other processes."""
        return not unsettled(open_label_cache(self.folder), ids)

    def finish(self, ids: Sequence[str], last_run: Mapping[str, Any], stamp: str = "") -> dict[str, Any]:
        """Writes the pixels per class and the finished manifest, unless the manifest has the same content already.

        Args:
            ids: All images; each has a label or is bad.
            last_run: JSON facts about the run that ends now; "labeled" is the number of its new labels.
            stamp: The stamp of the images, see `Source.stamp`.

        Returns:
            The manifest.
        """
        remove_abandoned_parts(self.folder)
        extra = self._finalize()
        cache = open_label_cache(self.folder)
        labeled = [id_ for id_ in ids if cache.is_labeled(id_)]
        known, reasons = set(labeled), cache.bad
        bad = {id_: reasons[id_] for id_ in ids if id_ not in known}
        pixels = np.array([self._pixels(id_) for id_ in labeled], np.int32).reshape(-1, self.dataset.num_classes + 1)
        write_class_pixels(self.folder, labeled, pixels)
        totals = pixels.sum(0, dtype=np.int64).tolist()
        state = {
            "finished": True,
            "counts": {"images": len(ids), "labeled": len(labeled), "bad": len(bad)},
            "bad": bad,
            "pixels": dict(zip((*self.dataset.classes, "ignored"), totals, strict=True)),
            **self._images(cache, labeled),
            **({"images_stamp": stamp} if stamp else {}),
            **extra,
        }
        manifest = self.open() or {}
        if manifest.items() >= state.items():
            return manifest
        made = {"versions": _versions(), "last_run": dict(last_run)}
        if not last_run.get("labeled"):
            made |= {key: manifest[key] for key in made if key in manifest}
        return self._write_manifest(state | made)

    def _images(self, cache: RecordedLabels, ids: Sequence[str]) -> dict[str, Any]:
        """The digest of the labeled images and the mean confidence of the labels, as far as they are known."""
        with ThreadPoolExecutor(_WRITERS) as pool:
            found = list(cache.provenances(ids, pool))
        labels = [label for label in found if isinstance(label, Provenance)]
        if not labels or len(labels) < len(found):
            return {}
        images = images_sha256((id_, label.image) for id_, label in zip(ids, labels, strict=True))
        confidence = mean_confidence(labels)
        return {"images_sha256": images} | ({} if confidence is None else {"mean_confidence": confidence})

    @abc.abstractmethod
    def _finalize(self) -> dict[str, Any]:
        """Finalizes the files; returns extra fields for the manifest."""

    @abc.abstractmethod
    def _pixels(self, id_: str) -> np.ndarray:
        """Pixels per class of a labeled image, int32 [num_classes + 1]."""

    def _write_manifest(self, state: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {"version": _VERSION, **self.identity, "form": self.form, **state}
        if (begun := read_manifest(self.folder)) is not None:
            for key in (_DEVICE, _PRECISION):  # of the process that began, if it recorded them
                manifest.pop(key, None)
                manifest |= {key: begun[key]} if key in begun else {}
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        return manifest


class FileStore(LabelStore):
    """Labels in a tree of PNG files. A part is a batch; the label of an image is written after its confidence."""

    form = FILES

    def __init__(self, folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo):
        super().__init__(folder, identity, dataset)
        self._labels = FileLabels(folder)
        self._rows: dict[str, np.ndarray] = {}  # pixels per class of the images labeled by this process

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has a usable label."""
        return id_ not in self.unusable and self._labels.is_labeled(id_)

    def divide(self, groups: Sequence[Sequence[str]], batch_size: int) -> list[list[str]]:
        """Divides all images into batches."""
        return [list(ids[i : i + batch_size]) for ids in groups for i in range(0, len(ids), batch_size)]

    def write_part(self, part: int, labels: Sequence[LabelExample], bad: Mapping[str, str]) -> None:
        """Writes the files of the images."""
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(self._write, labels))
        for id_, reason in bad.items():
            write_whole(bad_path(self.folder, id_), reason)
            if id_ in self.unusable:
                plane_path(self.folder, "labels", id_).unlink(missing_ok=True)
                plane_path(self.folder, "confidence", id_).unlink(missing_ok=True)

    def _write(self, label: LabelExample) -> None:
        write_whole(plane_path(self.folder, "confidence", label.id), label.confidence)
        write_whole(plane_path(self.folder, "labels", label.id), label.label)
        bad_path(self.folder, label.id).unlink(missing_ok=True)
        self._rows[label.id] = label.pixels

    def _finalize(self) -> dict[str, Any]:
        return {}

    def _pixels(self, id_: str) -> np.ndarray:
        if id_ not in self._rows:
            path = plane_path(self.folder, "labels", id_)
            try:
                with path.open("rb") as file, Image.open(file) as image:
                    self._rows[id_] = class_row(image.histogram()[:256], self.dataset.num_classes)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: damaged label ({error}); remove the file to label it again") from error
        return self._rows[id_]


def _versions() -> dict[str, str]:
    """Versions of the installed packages that can change labels."""
    versions = {}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """One "key was X, is Y" for each different fact; the fingerprints if all facts are equal."""
    facts = [
        key for key in wanted if key not in ("fingerprint", _DEVICE) and found.get(key, wanted[key]) != wanted[key]
    ]
    return ", ".join(
        f"{key} was {_short(found.get(key))}, is {_short(wanted[key])}" for key in facts or ["fingerprint"]
    )


def _short(value: Any) -> str:
    """The value; of a SHA-256 its first 8 digits."""
    return _HEX.sub(r"\1", str(value))
