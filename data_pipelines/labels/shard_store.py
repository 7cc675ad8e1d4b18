"""Writes cached OVS labels in shards, each shard atomically."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.labels.examples import LabelExample
from data_pipelines.labels.manifest import SHARDS
from data_pipelines.labels.provenance import Provenance
from data_pipelines.labels.shards import (
    FEATURES,
    SPLIT,
    LabelShard,
    ShardLabels,
    list_path,
    read_shards,
    shard_paths,
    write_label_shard,
)
from data_pipelines.labels.store import LabelStore
from data_pipelines.sources.shard_files import write_metadata

FEWEST_RECORDS = 64  # of a shard: a killed process loses the labels of one shard
MOST_RECORDS = 1024  # of a shard: they are held in memory until the shard is written
MOST_SHARDS = 512  # unless a shard would have more than MOST_RECORDS: readers keep all shards open

_DESCRIPTION = "Labels of out-of-distribution images by an open-vocabulary model; 255 is certain."


class _Found(NamedTuple):
    """Valid shards found on disk, from this or an earlier assignment."""

    shards: dict[Path, LabelShard]
    labels: ShardLabels
    rows: dict[str, np.ndarray]  # pixels per class by image
    provenances: dict[str, Provenance | None]


class ShardStore(LabelStore):
    """Labels in shards.

    A shard that has to be written again, or that belongs to a changed OOD set, gets a copy of each label that exists.
    """

    form = SHARDS

    def __init__(self, folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo):
        super().__init__(folder, identity, dataset)
        self._name = ""  # of the dataset, from the assignment of images to shards
        self._parts: list[list[str]] = []
        self._paths: list[Path] = []

    @functools.cached_property
    def _found(self) -> _Found:
        shards = [shard for shard in read_shards(self.folder) if not shard.fault()]
        rows = {id_: row for shard in shards for id_, row in zip(shard.content.ids, shard.pixels, strict=True)}
        provenances = {id_: found for s in shards for id_, found in zip(s.content.ids, s.provenances, strict=True)}
        return _Found({shard.path: shard for shard in shards}, ShardLabels(self.folder, shards), rows, provenances)

    def is_labeled(self, id_: str) -> bool:
        """Whether the image had a usable label when this store was opened."""
        return id_ not in self.unusable and self._found.labels.is_labeled(id_)

    def divide(self, groups: Sequence[Sequence[str]], batch_size: int) -> list[list[str]]:
        """Assigns images to shards; a shard may hold images of several groups."""
        ids = [id_ for group in groups for id_ in group]
        length = part_length(len(ids))
        parts = [ids[start : start + length] for start in range(0, len(ids), length)]
        self.assign(parts)
        return parts

    def assign(self, parts: Sequence[Sequence[str]]) -> None:
        """Assigns images to shards, one sequence of ids for each shard."""
        self._parts = [list(part) for part in parts]
        content = "\n\n".join("\n".join(part) for part in self._parts)
        self._name = f"ovs_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        self._paths = shard_paths(self.folder, self._name, len(parts))

    def write_part(self, part: int, labels: Sequence[LabelExample], bad: Mapping[str, str]) -> None:
        """Writes a shard, unless it is already on disk with the same content."""
        path, new = self._paths[part], {label.id: label for label in labels}
        written = self._found.shards.get(path)
        if written and not new and written.bad.keys() == bad.keys():
            return
        if (self.open() or {}).get("finished"):
            self._write_manifest({"finished": False})  # else a kill would leave what looks like damage
        examples = [new.get(id_) or self._copy(id_) for id_ in self._parts[part] if id_ in new or self.is_labeled(id_)]
        write_label_shard(path, examples, bad)

    def finished(self, ids: Sequence[str]) -> bool:
        """Whether each image has a label or is bad, and all processes have written their shards."""
        return super().finished(ids) and all(list_path(path).exists() for path in self._paths)

    def _copy(self, id_: str) -> LabelExample:
        planes = self._found.labels.read(id_)
        provenance = self._found.provenances[id_]
        return LabelExample(id_, planes["label"], planes["confidence"], self._found.rows[id_], provenance)

    def _finalize(self) -> dict[str, Any]:
        vars(self).pop("_found", None)  # this and other processes have written shards
        if not self._paths:
            return {SHARDS: (self.open() or {}).get(SHARDS)}
        for path in self.folder.glob("ovs_*.array_record-*"):  # of an earlier assignment
            if not path.name.startswith(f"{self._name}-"):
                path.unlink(missing_ok=True)
        shards = [self._found.shards[path].content for path in self._paths]
        write_metadata(
            self.folder, self._name, FEATURES, {SPLIT: shards}, description=_DESCRIPTION, metadata=dict(self.identity)
        )
        return {SHARDS: {"name": self._name, "count": len(self._paths)}}

    def _pixels(self, id_: str) -> np.ndarray:
        return self._found.rows[id_]


def part_length(count: int) -> int:
    """Number of images in a shard, for a set of `count` images."""
    return min(max(-(-count // MOST_SHARDS), FEWEST_RECORDS), MOST_RECORDS)
