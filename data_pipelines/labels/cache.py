"""Cached OVS labels, joined to images by id: a tree of PNG files, or shards.

FOLDER/manifest.json       what made the labels, and their form: "files", or "shards", see `shards`
FOLDER/class_pixels.npz    once finished: how many pixels of each class every image has, see `read_class_pixels`
FOLDER/labels/ID.png       palette PNG of class indices, the ignore index where the model is silent
FOLDER/confidence/ID.png   8-bit gray, 255 is certain
FOLDER/bad/ID.txt          why an image could not be read; such an image has no label
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_pipelines.labels.files import FileLabels
from data_pipelines.labels.manifest import FILES, read_manifest
from data_pipelines.sources.records import EncodedImage, Record, Source


class LabelCache(Protocol):
    """Cached pseudo-labels, joined to images by id. It can be pickled."""

    @property
    def bad(self) -> Mapping[str, str]:
        """Why an image has no label, by id."""

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        ...

    def planes(self, id_: str) -> tuple[EncodedImage | None, EncodedImage | None]:
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
    from data_pipelines.labels.shards import ShardLabels, read_shards  # importing it takes a while

    return ShardLabels(folder, read_shards(folder))


def unsettled(cache: LabelCache, ids: Iterable[str]) -> list[str]:
    """The images that neither have a label nor are known to be bad."""
    bad = cache.bad
    return [id_ for id_ in ids if id_ not in bad and not cache.is_labeled(id_)]
