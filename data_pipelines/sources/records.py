"""Records, and the sources that hold them: an image and its planes, encoded until asked for."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np

from data_pipelines.errors import InputError


class UnreadableError(InputError):
    """A file that is missing, empty or damaged: the one fault for which another record may stand in."""


class EncodedImage(Protocol):
    """An encoded image that is read when asked for."""

    @property
    def name(self) -> str:
        """What error messages call it, usually a path."""

    def open(self) -> BinaryIO:
        """A stream over the encoded bytes; raises `UnreadableError` if there is none."""

    def read(self) -> bytes:
        """All encoded bytes; raises `UnreadableError` if they cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """An encoded image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def open(self) -> BinaryIO:
        """Opens the file for reading; raises `UnreadableError` if it cannot be."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def read(self) -> bytes:
        """The file's bytes; raises `UnreadableError` if they cannot be read."""
        with self.open() as stream:
            try:
                return stream.read()
            except OSError as error:
                raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known about it.

    Attributes:
        id: Path of the image relative to the source's root, without suffix, with "/" between folders.
        image: The encoded photograph.
        label: The encoded label plane (class indices), if the source has labels.
        confidence: The encoded confidence plane (8-bit gray, 255 is certain), if the label is a pseudo-label.
    """

    id: str
    image: EncodedImage
    label: EncodedImage | None = None
    confidence: EncodedImage | None = None


class Source(Protocol):
    """A sized, indexable collection of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    @property
    def prepared(self) -> bool:
        """Whether the images were looked at when the records were written, as those of shards were."""
        ...

    def ids(self) -> Sequence[str]:
        """The ids of all records, in order."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedSource:
    """Some records of a source.

    Attributes:
        source: The source.
        positions: Which of its records, in order, int64 [N].
    """

    source: Source
    positions: np.ndarray

    @property
    def prepared(self) -> bool:
        """Whether the source is."""
        return self.source.prepared

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.positions[index])]

    def ids(self) -> list[str]:
        """The ids of the selected records, in order."""
        ids = self.source.ids()
        return [ids[position] for position in self.positions]


@dataclasses.dataclass(frozen=True, eq=False)
class ConcatenatedSource:
    """The records of several sources, one source after the other.

    Attributes:
        sources: The sources.
    """

    sources: tuple[Source, ...]

    @property
    def prepared(self) -> bool:
        """Whether all sources are."""
        return all(source.prepared for source in self.sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Record:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    def ids(self) -> list[str]:
        """The ids of all records, in order."""
        return [id_ for source in self.sources for id_ in source.ids()]


def record_id(image: str) -> str:
    """The id of an image: its relative path without the suffix."""
    return str(PurePosixPath(image).with_suffix(""))
