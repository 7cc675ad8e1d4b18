"""Cached OVS labels, joined to images by id: a tree of PNG files, or shards.

FOLDER/manifest.json       facts about the model, and the form of the labels: "files", or "shards" (see `shards`)
FOLDER/class_pixels.npz    once finished: pixels per class of each image, see `read_class_pixels`
FOLDER/adopted.npz         the images of labels that an older version made, see `provenance`
FOLDER/labels/ID.png       palette PNG of class indices; the ignore index marks pixels without a label; see `provenance`
FOLDER/confidence/ID.png   8-bit gray PNG, 255 is certain
FOLDER/bad/ID.txt          why an image cannot be read; such an image has no label
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

from data_pipelines.errors import InputError
from data_pipelines.files import url_fault
from data_pipelines.labels.files import FileLabels
from data_pipelines.labels.manifest import FILES, read_manifest
from data_pipelines.labels.provenance import Provenance
from data_pipelines.sources.records import EncodedImage, Record, Source, UnreadableError


class LabelCache(Protocol):
    """Pseudo-labels of images, found by the id of the image. It can be pickled."""

    @property
    def bad(self) -> Mapping[str, str]:
        """Why an image has no label, by id."""

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has a label."""
        ...

    def planes(self, id_: str) -> tuple[EncodedImage | None, EncodedImage | None]:
        """Label and confidence of the image, None if there is none; reading a missing one raises `UnreadableError`."""
        ...

    def faults(self) -> list[str]:
        """Messages about damaged or missing files of a finished set. Reads no labels."""
        ...


class RecordedLabels(LabelCache, Protocol):
    """Labels that `semiovs_jax.label` made. They record their images."""

    @property
    def folder(self) -> Path:
        """The folder, `config.ovs.labels_dir`."""

    def provenances(self, ids: Sequence[str], pool: Executor) -> Iterator[Provenance | UnreadableError | None]:
        """What the labels of some images were made from, in the order of `ids`.

        Labels that are files are read and checked.

        Args:
            ids: Labeled images.
            pool: Reads many files at a time.

        Returns:
            None for a label that does not record it; the error for a label or a confidence that is damaged or missing.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class LabeledSource:
    """The records of a source, with the pseudo-labels of the same ids.

    Attributes:
        source: Records without labels.
        cache: The pseudo-labels.
        confident: Whether the records have a confidence, too.
    """

    source: Source
    cache: LabelCache
    confident: bool = True

    @property
    def prepared(self) -> bool:
        """As of the source."""
        return self.source.prepared

    @property
    def stamp(self) -> str:
        """As of the source."""
        return self.source.stamp

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label, confidence = self.cache.planes(record.id)
        return Record(record.id, record.image, label, confidence if self.confident else None)

    def ids(self) -> Sequence[str]:
        """The ids of all records, in order."""
        return self.source.ids()


def open_label_cache(folder: Path) -> RecordedLabels:
    """Opens the labels of a folder, finished or not. A folder without a manifest is a tree of files.

    Raises:
        InputError: The manifest or the list of a shard cannot be read.
    """
    if ((read_manifest(folder) or {}).get("form", FILES)) == FILES:
        return FileLabels(folder)
    if fault := url_fault(folder, "config.ovs.labels_dir"):
        raise InputError(f"{fault}. Its labels are in shards, which are files")
    from data_pipelines.labels.shards import ShardLabels, read_shards  # slow import

    return ShardLabels(folder, read_shards(folder))


def unsettled(cache: LabelCache, ids: Iterable[str]) -> list[str]:
    """Ids of the images that have no label and are not known to be bad."""
    bad = cache.bad
    return [id_ for id_ in ids if id_ not in bad and not cache.is_labeled(id_)]
