"""Cached OVS labels, joined to images by id: a tree of PNG files, or shards.

FOLDER/manifest.json       what made the labels, and their form: "files", or "shards", see `label_shards`
FOLDER/class_pixels.npz    once finished: how many pixels of each class every image has, see `read_class_pixels`
FOLDER/labels/ID.png       palette PNG of class indices, the ignore index where the model is silent
FOLDER/confidence/ID.png   8-bit gray, 255 is certain
FOLDER/bad/ID.txt          why an image could not be read; such an image has no label
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from data_pipelines.sources import Encoded, File, Record, Source

MANIFEST = "manifest.json"
FILES, SHARDS = "files", "shards"
LABEL_AGAIN = "remove the folder to label again, or set config.ovs.labels_dir to another one"
RUN_LABEL = "run `python -m semiovs_jax.label --config=...`"

_CLASS_PIXELS = "class_pixels.npz"


class LabelCache(Protocol):
    """Cached pseudo-labels, joined to images by id. It can be pickled."""

    @property
    def bad(self) -> Mapping[str, str]:
        """Why an image has no label, by id."""

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        ...

    def planes(self, id_: str) -> tuple[Encoded | None, Encoded | None]:
        """Label and confidence of the image; reading them raises `UnreadableError` where it has none."""
        ...

    def faults(self) -> list[str]:
        """Messages on files of a finished set that are damaged or gone, as far as it shows without reading labels."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledSource:
    """The records of a source, joined by id to cached pseudo-labels.

    Attributes:
        source: Records without labels.
        cache: The pseudo-labels.
        confident: Whether the records have the pseudo-labels' confidence, too.
    """

    source: Source
    cache: LabelCache
    confident: bool = True

    @property
    def prepared(self) -> bool:
        """Whether the source is."""
        return self.source.prepared

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label, confidence = self.cache.planes(record.id)
        return Record(record.id, record.image, label, confidence if self.confident else None)

    def ids(self) -> Sequence[str]:
        """The ids of all records, in order."""
        return self.source.ids()


def open_label_cache(folder: Path) -> LabelCache:
    """Opens the labels of a folder, finished or not; a folder without a manifest is a tree of files.

    Raises:
        InputError: The manifest or a shard's list cannot be read.
    """
    if ((read_manifest(folder) or {}).get("form", FILES)) == FILES:
        return FileLabels(folder)
    from data_pipelines.label_shards import ShardLabels, read_shards  # importing it takes a while

    return ShardLabels(folder, read_shards(folder))


@dataclasses.dataclass(frozen=True)
class FileLabels:
    """Labels in files of their own."""

    folder: Path

    @property
    def bad(self) -> dict[str, str]:
        """Why an image has no label, by id; reads the files anew each time."""
        root = self.folder / "bad"
        return {
            str(path.relative_to(root).with_suffix("")): path.read_text(encoding="utf-8")
            for path in sorted(root.rglob("*.txt"))
        }

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        return plane_path(self.folder, "labels", id_).exists()

    def planes(self, id_: str) -> tuple[File, File]:
        """Label and confidence of the image, which need not be there."""
        return File(plane_path(self.folder, "labels", id_)), File(plane_path(self.folder, "confidence", id_))

    def faults(self) -> list[str]:
        """Nothing: what is not there is not labeled."""
        return []


def plane_path(folder: Path, kind: str, id_: str) -> Path:
    """Where the plane `kind` ("labels" or "confidence") of the image `id_` lies in a tree of files."""
    return folder / kind / f"{id_}.png"


def unsettled(cache: LabelCache, ids: Iterable[str]) -> list[str]:
    """The images that neither have a label nor are known to be bad."""
    bad = cache.bad
    return [id_ for id_ in ids if id_ not in bad and not cache.is_labeled(id_)]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None if there is none; raises `InputError` if it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {LABEL_AGAIN}") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: cannot be read (not a JSON object); {LABEL_AGAIN}")
    return manifest


class ClassPixels(NamedTuple):
    """How many pixels of each class the labels of a finished folder have.

    Attributes:
        ids: The labeled images, in the order of the OOD set; bad images are not among them.
        pixels: int32 [len(ids), num_classes + 1], the last column counts pixels without a class.
    """

    ids: tuple[str, ...]
    pixels: np.ndarray


def read_class_pixels(folder: Path) -> ClassPixels:
    """Reads what `write_class_pixels` wrote, without opening any label.

    Raises:
        InputError: The labels are not finished or were finished before there was such a file, or it is damaged.
    """
    path = folder / _CLASS_PIXELS
    try:
        with np.load(path, allow_pickle=False) as content:
            return ClassPixels(tuple(content["ids"].tolist()), content["pixels"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {RUN_LABEL}, which counts the pixels of labels it finds") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); {RUN_LABEL}, which counts the pixels anew") from error


def write_class_pixels(folder: Path, ids: Sequence[str], pixels: np.ndarray) -> None:
    """Writes the pixels per class of each image, int32 [len(ids), num_classes + 1]."""
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array(ids, np.str_), pixels=pixels.astype(np.int32))
    write_whole(folder / _CLASS_PIXELS, buffer.getvalue())


def class_row(counts: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels per class and without a class, int32 [num_classes + 1], from pixels per label, [256]."""
    counts = np.asarray(counts)
    return np.append(counts[:num_classes], counts[num_classes:].sum()).astype(np.int32)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file of a folder of labels whole or not at all; raises `InputError` if it cannot be written."""
    replace_file(path, content, mend="set config.ovs.labels_dir to a folder you may write to")
