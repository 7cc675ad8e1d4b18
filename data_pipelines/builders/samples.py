"""Samples, and the units of a split in which they are prepared."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple


class Sample(NamedTuple):
    """One image of a dataset.

    Attributes:
        id: As in `sources.records.Record`: path of the image in a folder of the same files, without suffix.
        image: The bytes of the encoded photograph.
        label: The bytes of the encoded label mask; None without labels.
    """

    id: str
    image: bytes
    label: bytes | None = None


class BadFile(NamedTuple):
    """A file that cannot be used.

    Attributes:
        name: Its path, or "ARCHIVE: MEMBER".
        reason: Why it cannot be used.
    """

    name: str
    reason: str


class Unit(NamedTuple):
    """A part of a split that becomes one shard.

    Attributes:
        name: Name in messages: the path of a tar, or "FOLDER: images 0-999".
        samples: Yields the samples. It can be pickled, and opens files only when called.
    """

    name: str
    samples: Callable[[], Iterator[Sample | BadFile]]


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """An `EncodedImage` whose bytes are in memory."""

    name: str
    data: bytes

    def open(self) -> BinaryIO:
        """A stream over the bytes."""
        return io.BytesIO(self.data)

    def read(self) -> bytes:
        """The bytes."""
        return self.data
