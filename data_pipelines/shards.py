"""Records in a dataset that TensorFlow Datasets has prepared as ArrayRecord files. TensorFlow is not needed.

A dataset serves if its examples hold `image`, an encoded image, and `id`, a text that is unique in the dataset and can
be a relative path. Importing this module takes a while, because TensorFlow Datasets does.
"""

import dataclasses
import io
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import tensorflow_datasets as tfds

from data_pipelines.errors import InputError
from data_pipelines.sources import LabelCache, Record, UnreadableError

_WANTED = {"image": tfds.features.Image, "id": tfds.features.Text}


@dataclasses.dataclass(frozen=True, slots=True)
class ShardImage:
    """The encoded image of one example."""

    source: "ShardSource"
    index: int

    @property
    def name(self) -> str:
        """The dataset's folder and the example's position."""
        return f"{self.source.folder}: example {self.index}"

    def open(self) -> BinaryIO:
        """A stream over the bytes of `read`."""
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        """The bytes the dataset was made from, not decoded; raises `UnreadableError` if they cannot be read."""
        return self.source.feature(self.index, "image")


@dataclasses.dataclass(frozen=True, eq=False)
class ShardSource:
    """The examples of a prepared dataset. Ids are remembered; images are read each time they are asked for.

    Attributes:
        folder: The folder of the prepared dataset.
        examples: Serialized examples by index.
        features: Structure of the examples.
        cache: Cached pseudo-labels.
    """

    folder: Path
    examples: Any
    features: Any
    cache: LabelCache | None = None
    _ids: dict[int, str] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Record:
        if index not in self._ids:
            self._ids[index] = self._read_id(index)
        id_ = self._ids[index]
        return Record(id_, ShardImage(self, index), *(self.cache.planes(id_) if self.cache else ()))

    def ids(self) -> list[str]:
        """The ids of all records, in order; reads through the dataset once."""
        return [self[index].id for index in range(len(self))]

    def feature(self, index: int, name: str) -> bytes:
        """One feature of one example as its stored bytes; raises `UnreadableError` if it cannot be read."""
        # Parses this feature alone: others might need TensorFlow.
        wanted = tfds.features.FeaturesDict({name: self.features[name]})
        skip = {name: tfds.decode.SkipDecoding()}
        try:
            found = wanted.deserialize_example_np(self.examples[index], decoders=skip)[name]
        except Exception as error:  # whatever the readers meet in damaged files
            raise UnreadableError(f"{self.folder}: example {index} cannot be read ({error})") from error
        if not isinstance(found, bytes):  # a shard that is cut short gives empty examples
            raise UnreadableError(f"{self.folder}: example {index} has no {name}; prepare the dataset again")
        return found

    def _read_id(self, index: int) -> str:
        id_ = self.feature(index, "id").decode(errors="replace")
        path = PurePosixPath(id_)
        if not path.name or path.is_absolute() or ".." in path.parts or str(path) != id_:
            raise InputError(
                f"{self.folder}: example {index} has the id {id_!r}, which cannot be a relative path; mend the dataset"
            )
        return id_


def open_shards(folder: Path, split: str = "", cache: LabelCache | None = None) -> ShardSource:
    """Opens a prepared dataset.

    Args:
        folder: The folder that holds dataset_info.json.
        split: Name of a split, in TensorFlow Datasets' notation ("train", "train+test"); "" reads them all.
        cache: Cached pseudo-labels to join by id.

    Raises:
        InputError: The folder is no dataset of ArrayRecord files, lacks a feature, or has no such split.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        features, splits, file_format = builder.info.features, builder.info.splits, builder.info.file_format
    except Exception as error:  # whatever TensorFlow Datasets meets in a damaged folder
        raise InputError(f"{folder}: cannot be read as a prepared dataset ({error}); prepare it again") from error
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(
            f"{folder}: its files are {file_format.value}, not array_record; prepare it with file_format='array_record'"
        )
    missing = [
        f"'{name}' ({kind.__name__})"
        for name, kind in _WANTED.items()
        if name not in features or not isinstance(features[name], kind)
    ]
    if missing:
        found = ", ".join(f"'{name}' ({type(feature).__name__})" for name, feature in sorted(features.items()))
        raise InputError(f"{folder}: its examples lack {' and '.join(missing)}; they hold {found}")
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        examples = builder.as_data_source(split=split or "all", deserialize_method=raw)
        count = len(examples)
    except Exception as error:  # unknown splits and damaged files, by several types
        raise InputError(
            f"{folder}: cannot open the split {split!r} ({error}); config.data.ood_split names one of "
            f"{', '.join(splits)}, or is empty for all"
        ) from error
    if not count:
        raise InputError(f"{folder}: the split {split!r} is empty")
    return ShardSource(folder, examples, features, cache)
