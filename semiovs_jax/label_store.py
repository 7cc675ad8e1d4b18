"""Cached OVS labels on disk: a label and a confidence image per OOD image, and what made them.

    LABELS_DIR/manifest.json       the model that labels, and, once finished, counts, bad images, pixels by class,
                                   library versions, and the last run's images and seconds
    LABELS_DIR/labels/ID.png       palette PNG of class indices, the ignore index where the model is silent
    LABELS_DIR/confidence/ID.png   8-bit gray, 255 is certain
    LABELS_DIR/bad/ID.txt          why an image could not be read; such an image has no label
    LABELS_DIR/contact_sheet.html  a sample to look at, see `contact_sheet`

ID is the image's path below the OOD root without suffix. Files appear whole or not at all, the label last, so
that a label's presence means that its image is done, whatever was killed when.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.sources import cached_path

_VERSION = 1
_LIBRARIES = ("semiovs-jax", "jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")


@dataclasses.dataclass(frozen=True)
class LabelStore:
    """A folder of cached labels.

    Attributes:
      folder: the folder, `config.ovs.labels_dir`.
      identity: what made the labels, for a person to read; "fingerprint" decides whether they are stale.
      palette: uint8 [256, 3], colors of the label images.
    """

    folder: Path
    identity: Mapping[str, Any]
    palette: np.ndarray

    def open(self) -> dict[str, Any] | None:
        """Reads the manifest; None if nothing was labeled yet.

        Raises:
          InputError: the labels were made by another model, vocabulary or setting, or the manifest is missing
            or damaged.
        """
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            if any((self.folder / "labels").rglob("*.png")):
                raise InputError(f"{self.folder}: holds labels without manifest.json; {self._mend()}") from None
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); {self._mend()}") from error
        if not isinstance(manifest, dict) or manifest.get("fingerprint") != self.identity["fingerprint"]:
            differences = _differences(manifest if isinstance(manifest, dict) else {}, self.identity)
            raise InputError(f"{self.folder}: stale labels, made otherwise: {differences}; {self._mend()}")
        return manifest

    def begin(self) -> None:
        """Marks the folder as this model's and unfinished, unless it is this model's already."""
        if self.open() is None:
            self._write_manifest({"finished": False})

    def finish(
        self, ids: Sequence[str], classes: Sequence[str], histogram: np.ndarray, last_run: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes and returns the finished manifest; one that already says so is kept.

        Args:
          ids: all images; each has a label or is bad.
          classes: class names by label.
          histogram: int64 [256], pixels per label over all label images.
          last_run: facts of the run that ends now, plain data.
        """
        for plane in ("labels", "confidence", "bad"):
            for part in (self.folder / plane).rglob("*.part"):  # of processes that were killed
                part.unlink(missing_ok=True)
        bad = {id_: self._bad_path(id_).read_text(encoding="utf-8") for id_ in ids if not self.is_labeled(id_)}
        state = {
            "finished": True,
            "counts": {"images": len(ids), "labeled": len(ids) - len(bad), "bad": len(bad)},
            "bad": bad,
            "pixels": {
                **{name: int(histogram[i]) for i, name in enumerate(classes)},
                "ignored": int(histogram[len(classes) :].sum()),
            },
        }
        manifest = self.open() or {}
        if manifest.items() >= state.items():
            return manifest
        return self._write_manifest({**state, "versions": _versions(), "last_run": dict(last_run)})

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        return cached_path(self.folder, "labels", id_).exists()

    def unsettled(self, ids: Iterable[str]) -> list[str]:
        """The images that neither have a label nor are known to be bad."""
        return [id_ for id_ in ids if not self.is_labeled(id_) and not self._bad_path(id_).exists()]

    def write(self, id_: str, label: np.ndarray, confidence: np.ndarray) -> None:
        """Writes both planes, uint8 [H, W], of one image."""
        gray = Image.fromarray(confidence)
        indexed = Image.fromarray(label)
        indexed.putpalette(self.palette.tobytes())  # gray levels become indices
        write_whole(cached_path(self.folder, "confidence", id_), gray)
        write_whole(cached_path(self.folder, "labels", id_), indexed)
        self._bad_path(id_).unlink(missing_ok=True)

    def write_bad(self, id_: str, reason: str) -> None:
        """Notes why an image cannot be labeled."""
        write_whole(self._bad_path(id_), reason)

    def histogram(self, ids: Iterable[str]) -> np.ndarray:
        """Pixels per label over the label images of `ids`, int64 [256]."""
        total = np.zeros(256, np.int64)
        for id_ in ids:
            path = cached_path(self.folder, "labels", id_)
            try:
                with Image.open(path) as image:
                    total += np.asarray(image.histogram()[:256])
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: damaged label ({error}); remove the file to label it again") from error
        return total

    def _bad_path(self, id_: str) -> Path:
        return self.folder / "bad" / f"{id_}.txt"

    def _write_manifest(self, state: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {"version": _VERSION, **self.identity, **state}
        write_whole(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        return manifest

    def _mend(self) -> str:
        return "remove the folder to label again, or set config.ovs.labels_dir to another one"


def write_whole(path: Path, content: str | Image.Image) -> None:
    """Writes a text, or an image as PNG, under another name, then renames it: readers never see a part of it.

    Raises:
      InputError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            part.write_text(content, encoding="utf-8")
        else:
            content.save(part, format="PNG")
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path}: cannot be written ({reason}); make room or set config.ovs.labels_dir to a folder you may write to"
        ) from error


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
