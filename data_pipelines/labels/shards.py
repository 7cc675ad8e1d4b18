"""Cached OVS labels in shards: a prepared dataset, joined to the images by id.

    FOLDER/ovs_PLAN-ood.array_record-00003-of-00012        examples of `id`, `label` and `confidence`, both PNG
    FOLDER/ovs_PLAN-ood.array_record-00003-of-00012.json   the list of the shard: its images and its bad images
    FOLDER/dataset_info.json, ood.ids.txt, ...             once all shards are written, see `shard_files`

The list is written after its shard: without a list, the images of the shard are not labeled. PLAN is a hash of the
assignment of images to shards: the shards of a changed OOD set do not overwrite the existing ones.
This module is slow to import, because it imports TensorFlow Datasets.
"""

import base64
import bisect
import dataclasses
import functools
import io
import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.errors import InputError, first_few
from data_pipelines.files import is_utf8, read_json
from data_pipelines.labels.examples import LabelExample
from data_pipelines.labels.manifest import RUN_LABEL, read_manifest, write_whole
from data_pipelines.labels.provenance import Provenance, read_adopted
from data_pipelines.sources.records import UnreadableError
from data_pipelines.sources.shard_files import Shard, read_ids, shard_path, write_shard

SPLIT = "ood"
FEATURES = tfds.features.FeaturesDict(
    {
        "id": tfds.features.Text(),
        "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "confidence": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    }
)

_LISTS = "*.array_record-*-of-*.json"
_MOST_OPEN = 512  # shards
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # single examples in any order
_READER_BUFFER = 1 << 15  # bytes
_COUNTS = np.dtype("<i4")


class LabelShard(NamedTuple):
    """The content of one shard, according to its list.

    Attributes:
        path: The shard.
        size: Bytes of the file.
        content: Ids and bytes of its examples.
        pixels: int32 [len(content.ids), num_classes + 1], see `LabelExample`.
        bad: Why an image that is assigned to the shard has no label, by id.
        provenances: What each label was made from, in the order of `content.ids`; None if unknown.
    """

    path: Path
    size: int
    content: Shard
    pixels: np.ndarray
    bad: dict[str, str]
    provenances: list[Provenance | None]

    def fault(self) -> str | None:
        """A message if the file is damaged or missing, None otherwise. Reads no examples."""
        try:
            size = self.path.stat().st_size
            found = _open_reader(self.path).num_records() if size == self.size else None
        except FileNotFoundError:
            return self._complain("is missing")
        except Exception as error:  # the reader raises many types for damaged files
            return self._complain(f"cannot be read ({error})")
        if found is None:
            return self._complain(f"has {size} bytes, expected {self.size}")
        expected = len(self.content.ids)
        return None if found == expected else self._complain(f"has {found} examples, expected {expected}")

    def _complain(self, what: str) -> str:
        return f"{self.path}: {what}; {lost_labels(self.content.ids)}"


def lost_labels(ids: Sequence[str]) -> str:
    """Message about lost labels, with what to do."""
    few = first_few(ids, 3)
    return f"it held {len(ids)} label(s) ({few}); put the file back, or {RUN_LABEL} to label these images again"


def write_label_shard(path: Path, examples: Sequence[LabelExample], bad: Mapping[str, str]) -> None:
    """Writes a shard, then its list.

    Args:
        path: Path of the shard, from `shard_path`.
        examples: The labels.
        bad: Why an image that is assigned to the shard has no label, by id.

    Raises:
        InputError: A file cannot be written.
    """
    list_path(path).unlink(missing_ok=True)  # of an older shard
    content = write_shard(
        path, FEATURES, ({"id": label.id, "label": label.label, "confidence": label.confidence} for label in examples)
    )
    pixels = np.stack([example.pixels for example in examples]) if examples else np.zeros((0, 0))
    entry = {
        "size": path.stat().st_size,
        "bytes": content.bytes,
        "ids": content.ids,
        "bad": dict(bad),
        "provenances": [example.provenance and example.provenance.write() for example in examples],
        "pixels": base64.b64encode(pixels.astype(_COUNTS).tobytes()).decode(),  # numbers are slow to parse
    }
    write_whole(list_path(path), json.dumps(entry) + "\n")


def list_path(shard: Path) -> Path:
    """Path of the list of a shard."""
    return shard.with_name(f"{shard.name}.json")


def read_shards(folder: Path) -> list[LabelShard]:
    """Reads the list of every shard, finished set or not; raises `InputError` if a list cannot be read."""
    return [_read_list(path) for path in sorted(folder.glob(_LISTS))]


def _read_list(path: Path) -> LabelShard:
    try:
        entry = read_json(path)
        ids, bad = tuple(entry["ids"]), dict(entry["bad"])
        if not all(isinstance(text, str) and is_utf8(text) for text in (*ids, *bad, *bad.values())):
            raise TypeError("ids and reasons must be texts")
        pixels = np.frombuffer(base64.b64decode(entry["pixels"]), _COUNTS).reshape(len(ids), -1 if ids else 0)
        texts = entry.get("provenances", [None] * len(ids))  # missing: an older version wrote the list
        provenances = [text and Provenance.read(text) for text in texts]
        if len(provenances) != len(ids):
            raise ValueError(f"{len(provenances)} provenances of {len(ids)} labels")
        shard = Shard(ids, int(entry["bytes"]))
        return LabelShard(path.with_suffix(""), int(entry["size"]), shard, pixels, bad, provenances)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove it, then {RUN_LABEL} to label the images of its shard again"
        ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class LabelPlane:
    """The "label" or "confidence" of one image, read on demand."""

    labels: "ShardLabels"
    id: str
    plane: str

    @property
    def name(self) -> str:
        """The shard, the plane and the id."""
        return f"{self.labels.shard_of(self.id) or self.labels.folder}: {self.plane} of {self.id}"

    def open(self) -> BinaryIO:
        """A stream of the bytes that `read` returns."""
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        """The encoded plane; raises `UnreadableError` if it cannot be read."""
        return self.labels.read(self.id)[self.plane]


class ShardLabels:
    """The labels in the shards of a folder. Threads may share it, and it can be pickled.

    Attributes:
        folder: The folder of the shards.
        bad: Why an image has no label, by id.
    """

    def __init__(self, folder: Path, shards: Sequence[LabelShard]):
        self.folder = folder
        self._paths = [shard.path for shard in shards]
        self._ends = list(itertools.accumulate(len(shard.content.ids) for shard in shards))
        ids = itertools.chain.from_iterable(shard.content.ids for shard in shards)
        self._places = {id_: place for place, id_ in enumerate(ids)}
        bad = {id_: reason for shard in shards for id_, reason in shard.bad.items()}
        self.bad = {id_: reason for id_, reason in bad.items() if id_ not in self._places}
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_reader", "_memo")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        self._reader = functools.lru_cache(_MOST_OPEN)(_open_reader)
        self._memo = threading.local()  # the last example of each thread: label and confidence are read in turn

    def is_labeled(self, id_: str) -> bool:
        """Whether the image has a label."""
        return id_ in self._places

    def planes(self, id_: str) -> tuple[LabelPlane, LabelPlane]:
        """Label and confidence of the image; they may be missing."""
        return LabelPlane(self, id_, "label"), LabelPlane(self, id_, "confidence")

    def provenances(self, ids: Sequence[str], pool: Executor) -> Iterator[Provenance | UnreadableError | None]:
        """See `RecordedLabels.provenances`. Reads no labels: `faults` checks the shards."""
        del pool
        found: dict[str, Provenance | None] = dict(read_adopted(self.folder))
        for shard in read_shards(self.folder):
            pairs = zip(shard.content.ids, shard.provenances, strict=True)
            found |= {id_: provenance for id_, provenance in pairs if provenance is not None}
        return (found.get(id_) for id_ in ids)

    def shard_of(self, id_: str) -> Path | None:
        """The shard that holds the label of the image, None if it has no label."""
        place = self._places.get(id_)
        return None if place is None else self._paths[bisect.bisect_right(self._ends, place)]

    def read(self, id_: str) -> dict[str, bytes]:
        """Both planes of an image, encoded; raises `UnreadableError` if they cannot be read."""
        last, planes = getattr(self._memo, "example", (None, {}))
        if last != id_:
            planes = self._read(id_)
            self._memo.example = id_, planes
        return planes

    def _read(self, id_: str) -> dict[str, bytes]:
        place = self._places.get(id_)
        if place is None:
            raise UnreadableError(f"{self.folder}: {id_} has no label; {self.bad.get(id_, RUN_LABEL)}")
        shard = bisect.bisect_right(self._ends, place)
        path, row = self._paths[shard], place - (self._ends[shard - 1] if shard else 0)
        remedy = f"remove the file and {RUN_LABEL} to label its images again"
        try:
            (serialized,) = self._reader(path).read([row])
            features = tf_example_pb2.Example.FromString(serialized).features.feature
            found, *planes = (features[name].bytes_list.value[0] for name in ("id", "label", "confidence"))
        except Exception as error:  # the readers raise many types for damaged files
            raise UnreadableError(f"{path}: the label of {id_} cannot be read ({error}); {remedy}") from error
        if found != id_.encode():
            raise InputError(f"{path}: example {row} is {found.decode(errors='replace')}, expected {id_}; {remedy}")
        return dict(zip(("label", "confidence"), planes, strict=True))

    def faults(self) -> list[str]:
        """Messages about damaged and missing shards of a finished set. Reads no labels."""
        manifest = read_manifest(self.folder)
        if not manifest or not manifest["finished"]:
            return []
        shards = {shard.path: shard for shard in read_shards(self.folder)}
        faults = [fault for shard in shards.values() if (fault := shard.fault())]
        paths = shard_paths(self.folder, manifest["shards"]["name"], manifest["shards"]["count"])
        if missing := [str(list_path(path)) for path in paths if path not in shards]:
            lost = [id_ for id_ in read_ids(self.folder, SPLIT) or () if id_ not in self._places]
            faults.append(f"{first_few(missing, 3)}: is missing; {lost_labels(lost)}")
        return faults


def shard_paths(folder: Path, name: str, count: int) -> list[Path]:
    """Paths of all shards of an assignment; `name` is `ovs_PLAN`."""
    return [shard_path(folder, name, SPLIT, index, count) for index in range(count)]


def _open_reader(path: Path) -> Any:
    return ArrayRecordReader(str(path), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER)
