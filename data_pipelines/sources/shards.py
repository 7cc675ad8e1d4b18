"""Records of a dataset that TensorFlow Datasets prepared as ArrayRecord files. TensorFlow is not needed.

Each example holds `image`, an encoded image, and `id`, a text that is unique in the dataset and a valid relative path.
Records with labels also need `label`, an encoded mask of class indices. Importing this module is slow: it imports
TensorFlow Datasets.
"""

import dataclasses
import functools
import hashlib
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.errors import InputError
from data_pipelines.sources.records import Record, UnreadableError
from data_pipelines.sources.shard_files import ids_path, read_ids

_INDEX_BYTES = 1 << 17  # at the end of a shard
_WANTED = {"image": tfds.features.Image, "id": tfds.features.Text}


@dataclasses.dataclass(frozen=True, slots=True)
class ShardPlane:
    """The encoded image or label of one example."""

    source: "ShardSource"
    index: int
    field: str

    @property
    def name(self) -> str:
        """The folder of the dataset and the position of the example."""
        return f"{self.source.folder}: example {self.index}"

    def open(self) -> BinaryIO:
        """A stream over the bytes of `read`."""
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        """Reads the encoded bytes of the original file; raises `UnreadableError` if that fails."""
        return self.source.read(self.index, self.field)


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """The examples of a prepared dataset, read on demand.

    Attributes:
        folder: The folder of the prepared dataset.
        examples: Serialized examples, by index.
        listed_ids: The ids by index, from the dataset's id lists; None: they are read from the examples and cached.
        labeled: Whether the records have labels.
    """

    folder: Path
    examples: Any
    listed_ids: Sequence[str] | None = None
    labeled: bool = False
    _read_ids: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def prepared(self) -> bool:
        """True: images are checked before they are written to shards."""
        return True

    @functools.cached_property
    def stamp(self) -> str:
        """A digest of the dataset's description, and of the size and the end of each shard, which has its index."""
        try:
            digest = hashlib.sha256((self.folder / "dataset_info.json").read_bytes())
            for path in sorted(self.folder.glob("*.array_record-*-of-?????")):
                with path.open("rb") as shard:
                    size = shard.seek(0, io.SEEK_END)
                    shard.seek(max(0, size - _INDEX_BYTES))
                    digest.update(f"{path.name} {size}\n".encode() + shard.read())
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be read ({error}); check the storage, or prepare it again"
            ) from error
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Record:
        label = ShardPlane(self, index, "label") if self.labeled else None
        return Record(self._id(index), ShardPlane(self, index, "image"), label)

    def ids(self) -> Sequence[str]:
        """The ids of all records, in order; reads the whole dataset once if it has no id lists."""
        return self.listed_ids if self.listed_ids is not None else [self._id(index) for index in range(len(self))]

    def read(self, index: int, field: str) -> bytes:
        """Reads one field of one example; raises `UnreadableError` if that fails."""
        example = self._example(index)
        values = example.features.feature[field].bytes_list.value if field in example.features.feature else ()
        if not values:  # a truncated shard gives empty examples
            raise UnreadableError(f"{self.folder}: example {index} has no {field}; prepare the dataset again")
        return values[0]

    def _example(self, index: int) -> tf_example_pb2.Example:
        # One thread reads a record's image, then its label: the second read needs no parsing.
        if _last.source is not self or _last.index != index:
            try:
                example = tf_example_pb2.Example.FromString(self.examples[index])
            except Exception as error:  # readers raise several types on damaged files
                raise UnreadableError(
                    f"{self.folder}: example {index} cannot be read ({error}); prepare the dataset again"
                ) from error
            _last.source, _last.index, _last.example = self, index, example
        return _last.example

    def _id(self, index: int) -> str:
        if self.listed_ids is not None:
            return self.listed_ids[index]
        if index not in self._read_ids:
            self._read_ids[index] = _checked_id(self, index, self.read(index, "id").decode(errors="replace"))
        return self._read_ids[index]


class _LastExample(threading.local):
    source: ShardSource | None = None
    index: int
    example: tf_example_pb2.Example


_last = _LastExample()


def open_shards(
    folder: Path,
    split: str = "",
    *,
    labeled: bool = False,
    field: str = "config.data.ood_split",
) -> ShardSource:
    """Opens a prepared dataset.

    Args:
        folder: The folder with dataset_info.json.
        split: Name of a split, in the notation of TensorFlow Datasets ("train", "train+test"); "" for all splits.
        labeled: Whether the records have labels.
        field: The name of `split` in error messages.

    Raises:
        InputError: The folder is not a dataset of ArrayRecord files, a feature is missing, or there is no such split.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        features, splits, file_format = builder.info.features, builder.info.splits, builder.info.file_format
    except Exception as error:  # several types, for damaged folders
        raise InputError(f"{folder}: cannot be read as a prepared dataset ({error}); prepare it again") from error
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f"{folder}: its files are {file_format.value}, not array_record; prepare it with file_format='array_record'"
        )
    wanted = _WANTED | ({"label": tfds.features.Image} if labeled else {})
    missing = [
        f"'{name}' ({kind.__name__})"
        for name, kind in wanted.items()
        if name not in features or not isinstance(features[name], kind)
    ]
    if missing:
        found = ", ".join(f"'{name}' ({type(feature).__name__})" for name, feature in sorted(features.items()))
        raise InputError(f"{folder}: its examples lack {' and '.join(missing)}; they hold {found}; prepare it again")
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        examples = builder.as_data_source(split=split or "all", deserialize_method=raw)
        count = len(examples)
    except Exception as error:  # several types, for unknown splits and damaged files
        raise InputError(
            f"{folder}: cannot open the split {split!r} ({str(error).partition(chr(10))[0]}); set {field} to one of "
            f"{', '.join(splits)}, or to a list below the root"
        ) from error
    if not count:
        raise InputError(f"{folder}: the split {split!r} is empty; choose another split, or prepare it again")
    source = ShardSource(folder, examples, labeled=labeled)
    return dataclasses.replace(source, listed_ids=_listed_ids(source, [split] if split else list(splits)))


def _listed_ids(source: ShardSource, splits: Sequence[str]) -> Sequence[str] | None:
    """The ids from the id lists of these splits; None if a list is missing.

    Raises:
        InputError: The lists do not match the examples.
    """
    lists = [read_ids(source.folder, split) for split in splits]
    ids: Sequence[str] = []
    for found in lists:
        if found is None:
            return None
        ids = [*ids, *found] if ids else found  # a single list stays on disk
    paths = ", ".join(ids_path(source.folder, split).name for split in splits)
    ends = (0, len(source) - 1)
    if len(ids) != len(source) or any(source.read(index, "id") != ids[index].encode() for index in ends):
        raise InputError(f"{source.folder}: {paths} do(es) not list the ids of its examples; prepare the dataset again")
    for index, id_ in enumerate(ids):
        _checked_id(source, index, id_)
    return ids


def _checked_id(source: ShardSource, index: int, id_: str) -> str:
    if not all(part not in ("", ".", "..") for part in id_.split("/")):
        raise InputError(
            f"{source.folder}: example {index} has the id {id_!r}, which is not a relative path; rename the image and "
            "prepare the dataset again"
        )
    return id_
