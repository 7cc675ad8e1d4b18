"""Writes ArrayRecord shards in the layout of TensorFlow Datasets, without TensorFlow.

    FOLDER/NAME-SPLIT.array_record-00000-of-00012   examples, each a serialized `tf.train.Example`
    FOLDER/dataset_info.json, features.json, ...    what `tensorflow_datasets.builder_from_directory` reads
    FOLDER/SPLIT.ids.txt                            the ids of the examples in order, one a line: joins read only this

Each shard is written atomically, the metadata last. Importing this module is slow: it imports TensorFlow Datasets.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.errors import InputError
from data_pipelines.files import replace_file, whole_file

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_WRITER_OPTIONS = "group_size:1"  # each example can be read alone


class Shard(NamedTuple):
    """The ids and the length of a written shard.

    Attributes:
        ids: The `id` of each example, in order.
        bytes: Total length of the serialized examples.
    """

    ids: tuple[str, ...]
    bytes: int


def shard_path(folder: Path, name: str, split: str, index: int, count: int) -> Path:
    """The path of shard `index` of `count` of a split; `name` is the dataset's."""
    return folder / f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_shard(path: Path, features: tfds.features.FeaturesDict, examples: Iterable[Mapping[str, Any]]) -> Shard:
    """Writes one shard atomically: readers never see a part of it.

    Args:
        path: Path of the shard, from `shard_path`.
        features: Structure of the examples. Images are encoded bytes and stored unchanged.
        examples: The examples, each with a text `id`.

    Raises:
        InputError: The shard cannot be written, or an id is empty or contains a line break.
    """
    ids, length = [], 0
    with whole_file(path) as part:
        writer = ArrayRecordWriter(str(part), _WRITER_OPTIONS)
        try:
            for example in examples:
                serialized = _in_order(features.serialize_example(features.encode_example(example)))
                _call(writer.write, serialized)
                ids.append(_line(path, example["id"]))
                length += len(serialized)
        finally:
            _call(writer.close)
    return Shard(tuple(ids), length)


def write_metadata(
    folder: Path,
    name: str,
    features: tfds.features.FeaturesDict,
    splits: Mapping[str, Sequence[Shard]],
    *,
    version: str = "1.0.0",
    description: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Turns a folder of written shards into a prepared dataset.

    Args:
        folder: The folder of the shards.
        name: Name of the dataset, as in the names of the shards.
        features: Structure of the examples.
        splits: All shards of each split, in order.
        version: Version of the dataset.
        description: What the dataset is.
        metadata: Plain data to store with the dataset.

    Raises:
        InputError: A shard is missing, or a file cannot be written.
    """
    infos = []
    for split, shards in splits.items():
        for index in range(len(shards)):
            if not (path := shard_path(folder, name, split, index, len(shards))).is_file():
                raise InputError(f"{path}: the shard is missing; prepare the dataset again")
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard.ids) for shard in shards],
                num_bytes=sum(shard.bytes for shard in shards),
            )
        )
        write_ids(folder, split, [id_ for shard in shards for id_ in shard.ids])
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        version=version,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, filetype_suffix="array_record", template=_TEMPLATE
        ),
        check_data=False,  # needs TensorFlow
        description=description,
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata or {}),
    )


def write_ids(folder: Path, split: str, ids: Sequence[str]) -> None:
    """Writes the ids of a split's examples, in order; raises `InputError` if the file cannot be written."""
    path = ids_path(folder, split)
    replace_file(path, "".join(f"{_line(path, id_)}\n" for id_ in ids).encode())


class IdList(Sequence[str]):
    """The ids in a memory-mapped file: workers share its pages, and a pickled list holds only the path."""

    def __init__(self, path: Path):
        self._path = path
        self._bytes = np.fromfile(path, np.uint8) if not path.stat().st_size else np.memmap(path, np.uint8, "r")
        self._ends = np.flatnonzero(self._bytes == ord("\n"))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        """One id, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] + 1 if index else 0
        return self._bytes[start : self._ends[index]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._bytes.tobytes().decode().split("\n")[:-1])

    def __reduce__(self) -> Any:
        return IdList, (self._path,)


def read_ids(folder: Path, split: str) -> IdList | None:
    """Reads the ids of a split's examples, in order; None if the dataset has no such list.

    Raises:
        InputError: The list cannot be read.
    """
    path = ids_path(folder, split)
    try:
        ids = IdList(path)
        list(ids)  # decodes all
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it to read the ids from the shards") from error
    return ids


def ids_path(folder: Path, split: str) -> Path:
    """The path of the id list of a split."""
    return folder / f"{split}.ids.txt"


def _in_order(serialized: bytes) -> bytes:
    """Sorts the features of an example: the order of a protobuf map differs between processes."""
    return tf_example_pb2.Example.FromString(serialized).SerializeToString(deterministic=True)


def _call(method: Callable[..., Any], *arguments: Any) -> None:
    """Calls a method of a writer. Its errors, such as a full disk, become `OSError`."""
    try:
        method(*arguments)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _line(path: Path, id_: str) -> str:
    if not id_ or "\n" in id_ or "\r" in id_:
        raise InputError(f"{path}: the id {id_!r} is empty or contains a line break; rename the image")
    return id_
