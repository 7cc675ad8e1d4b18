"""Records and sources of records. A record is an image with its label and confidence map, read on demand."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np

from data_pipelines.errors import InputError


class UnreadableError(InputError):
    """A file is missing, empty or damaged.

    Training replaces such a record by another one. Any other `InputError` ends the run.
    """


class EncodedImage(Protocol):
    """An encoded image, read on demand."""

    @property
    def name(self) -> str:
        """Its name in error messages, usually a path."""

    def open(self) -> BinaryIO:
        """Opens a stream over the encoded bytes; raises `UnreadableError` if that fails."""

    def read(self) -> bytes:
        """Reads all encoded bytes; raises `UnreadableError` if that fails."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """An encoded image in its own file."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def open(self) -> BinaryIO:
        """Opens the file for reading; raises `UnreadableError` if that fails."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def read(self) -> bytes:
        """Reads all bytes of the file; raises `UnreadableError` if that fails."""
        with self.open() as stream:
            try:
                return stream.read()
            except OSError as error:
                raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image, with its label and confidence map if the source has them.

    Attributes:
        id: Path of the image relative to the source's root, without suffix, with "/" between folders.
        image: The encoded photograph.
        label: The encoded mask of class indices; None without labels.
        confidence: The encoded confidence map (8-bit gray, 255 is certain) of a pseudo-label; None without one.
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
        """Whether the images were checked when the source was written, as in shards."""
        ...

    @property
    def stamp(self) -> str:
        """A digest that changes with the images of a prepared source, found without reading them; else ""."""
        ...

    def ids(self) -> Sequence[str]:
        """The ids of all records, in order."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedSource:
    """A subset of the records of a source.

    Attributes:
        source: The source.
        positions: int64 [N], positions of the selected records, in order.
    """

    source: Source
    positions: np.ndarray

    @property
    def prepared(self) -> bool:
        """Whether the underlying source is prepared."""
        return self.source.prepared

    @property
    def stamp(self) -> str:
        """That of the underlying source."""
        return self.source.stamp

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
        sources: The sources, in order.
    """

    sources: tuple[Source, ...]

    @property
    def prepared(self) -> bool:
        """Whether all sources are prepared."""
        return all(source.prepared for source in self.sources)

    @property
    def stamp(self) -> str:
        """Those of all sources."""
        return " ".join(source.stamp for source in self.sources) if self.prepared else ""

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
