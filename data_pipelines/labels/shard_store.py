"""Where labeling keeps the labels of images in shards: in shards, too, each written whole."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.labels.manifest import SHARDS
from data_pipelines.labels.shards import (
    FEATURES,
    SPLIT,
    LabelExample,
    LabelShard,
    ShardLabels,
    list_path,
    read_shards,
    shard_paths,
    write_label_shard,
)
from data_pipelines.labels.store import LabelStore
from data_pipelines.sources.shard_files import write_metadata

FEWEST_RECORDS = 64  # in a shard: a kill costs the labels of one
MOST_RECORDS = 1024  # which are held in memory until the shard is written
MOST_SHARDS = 512  # as long as they can be had: readers keep them open

_DESCRIPTION = "Labels of out-of-distribution images by an open-vocabulary model; 255 is certain."


class _Found(NamedTuple):
    """The sound shards on disk, whatever their plan."""

    shards: dict[Path, LabelShard]
    labels: ShardLabels
    rows: dict[str, np.ndarray]  # pixels per class by image


class ShardStore(LabelStore):
    """Labels in shards.

    Labels that are there already, in a shard that has to be written anew or in the shards of an OOD set that has
    changed since, are copied.
    """

    form = SHARDS

    def __init__(self, folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo):
        super().__init__(folder, identity, dataset)
        self._name = ""  # of the plan
        self._parts: list[list[str]] = []
        self._paths: list[Path] = []
        self._held: dict[str, LabelExample] = {}  # labeled now, not yet in a shard
        self._written: set[str] = set()  # labeled now, in a shard
        self._bad: dict[str, str] = {}

    @functools.cached_property
    def _found(self) -> _Found:
        shards = [shard for shard in read_shards(self.folder) if not shard.fault()]
        rows = {id_: row for shard in shards for id_, row in zip(shard.content.ids, shard.pixels, strict=True)}
        return _Found({shard.path: shard for shard in shards}, ShardLabels(self.folder, shards), rows)

    def has_work(self, ids: Sequence[str]) -> bool:
        """Whether images lack a label, or shards are damaged or not yet finished."""
        manifest = self.open()
        finished = manifest is not None and manifest["finished"]
        return not (finished and all(map(self.is_labeled, ids))) or bool(open_label_cache(self.folder).faults())

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has its label."""
        return id_ in self._held or id_ in self._written or self._found.labels.is_labeled(id_)

    def write_bad(self, id_: str, reason: str) -> None:
        """Remembers why an image cannot be labeled, until its shard is written."""
        self._bad[id_] = reason

    def part_length(self, count: int) -> int | None:
        """Images in a shard."""
        return min(max(-(-count // MOST_SHARDS), FEWEST_RECORDS), MOST_RECORDS)

    def plan(self, parts: Sequence[Sequence[str]]) -> None:
        """Takes note which images go into which shard."""
        self._parts = [list(part) for part in parts]
        content = "\n\n".join("\n".join(part) for part in self._parts)
        self._name = f"ovs_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        self._paths = shard_paths(self.folder, self._name, len(parts))

    def is_written(self, part: int) -> bool:
        """Whether the plan's shard is there."""
        return self._paths[part] in self._found.shards

    def write_part(self, part: int) -> None:
        """Writes a shard, unless it would hold what it holds already."""
        ids, path = self._parts[part], self._paths[part]
        new = [id_ for id_ in ids if id_ in self._held]
        bad = {id_: self._bad[id_] for id_ in ids if id_ in self._bad}
        if not new and self.is_written(part) and self._found.shards[path].bad.keys() == bad.keys():
            return
        if (self.open() or {}).get("finished"):
            self._write_manifest({"finished": False})  # or a kill would leave what looks like damage
        write_label_shard(path, [self._example(id_) for id_ in ids if self.is_labeled(id_)], bad)
        self._written.update(new)
        for id_ in new:
            del self._held[id_]

    def finished(self, ids: Sequence[str]) -> bool:
        """Whether all shards of the plan are written, by whichever process."""
        return super().finished(ids) and all(list_path(path).exists() for path in self._paths)

    def _example(self, id_: str) -> LabelExample:
        if id_ in self._held:
            return self._held[id_]
        planes = self._found.labels.read(id_)
        return LabelExample(id_, planes["label"], planes["confidence"], self._found.rows[id_])

    def _write_planes(self, id_: str, label: bytes, confidence: bytes, pixels: np.ndarray) -> None:
        self._held[id_] = LabelExample(id_, label, confidence, pixels)

    def _finish_form(self) -> dict[str, Any]:
        vars(self).pop("_found", None)  # other processes have written, too
        if not self._paths:
            return {SHARDS: (self.open() or {}).get(SHARDS)}
        for path in self.folder.glob("ovs_*.array_record-*"):  # of a set that has changed since
            if not path.name.startswith(f"{self._name}-"):
                path.unlink(missing_ok=True)
        shards = [self._found.shards[path].content for path in self._paths]
        write_metadata(
            self.folder, self._name, FEATURES, {SPLIT: shards}, description=_DESCRIPTION, metadata=dict(self.identity)
        )
        return {SHARDS: {"name": self._name, "count": len(self._paths)}}

    def _pixels(self, id_: str) -> np.ndarray:
        return self._found.rows[id_]
