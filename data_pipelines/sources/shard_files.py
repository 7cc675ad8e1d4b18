"""ArrayRecord files in the layout of TensorFlow Datasets, written one whole shard at a time. TensorFlow is not needed.

    FOLDER/NAME-SPLIT.array_record-00000-of-00012   examples, each a serialized `tf.train.Example`
    FOLDER/dataset_info.json, features.json, ...    what `tensorflow_datasets.builder_from_directory` reads
    FOLDER/SPLIT.ids.txt                            the examples' ids in order, one a line: joins need not read images

A shard appears whole or not at all, and the metadata last. Importing this module takes a while, because TensorFlow
Datasets does.
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
_WRITER_OPTIONS = "group_size:1"  # every example can be read alone


class Shard(NamedTuple):
    """What one shard holds.

    Attributes:
        ids: The `id` of its examples, in order.
        bytes: Length of its examples.
    """

    ids: tuple[str, ...]
    bytes: int


def shard_path(folder: Path, name: str, split: str, index: int, count: int) -> Path:
    """Where shard `index` of `count` of a split lies; `name` is the dataset's."""
    return folder / f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


def write_shard(path: Path, features: tfds.features.FeaturesDict, examples: Iterable[Mapping[str, Any]]) -> Shard:
    """Writes one shard under another name, then renames it: readers never see a part of it.

    Args:
        path: The shard, as `shard_path` gives it.
        features: Structure of the examples. Images are given as encoded bytes, which are stored as they are.
        examples: The examples, with a text `id`.

    Raises:
        InputError: The shard cannot be written, or an id is empty or holds a line break.
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
    """Makes a folder of written shards a prepared dataset.

    Args:
        folder: The folder of the shards.
        name: Name of the dataset, as in the shards' names.
        features: Structure of the examples.
        splits: All shards of each split, in order.
        version: Version of the dataset.
        description: What the dataset is.
        metadata: Facts to keep with it, plain data.

    Raises:
        InputError: A shard is not there, or a file cannot be written.
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
    """Writes the ids of a split's examples, in order; raises `InputError` if it cannot."""
    path = ids_path(folder, split)
    replace_file(path, "".join(f"{_line(path, id_)}\n" for id_ in ids).encode())


class IdList(Sequence[str]):
    """The ids in a file, which stays on disk: workers share its pages, and a copy for one is the file's path."""

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
    """The ids of a split's examples in order, or None where the dataset was prepared without such a list.

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
        raise InputError(f"{path}: cannot be read ({error}); remove it to have the shards read instead") from error
    return ids


def ids_path(folder: Path, split: str) -> Path:
    """Where the ids of a split's examples are listed."""
    return folder / f"{split}.ids.txt"


def _in_order(serialized: bytes) -> bytes:
    """The same example with its features in order: the order of a map differs from process to process."""
    return tf_example_pb2.Example.FromString(serialized).SerializeToString(deterministic=True)


def _call(method: Callable[..., Any], *arguments: Any) -> None:
    """Calls a method of a writer, whose errors, such as that the disk is full, become `OSError`."""
    try:
        method(*arguments)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _line(path: Path, id_: str) -> str:
    if not id_ or "\n" in id_ or "\r" in id_:
        raise InputError(f"{path}: the id {id_!r} is empty or holds a line break; rename the image")
    return id_
