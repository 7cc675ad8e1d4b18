"""Checksums of encoded images that are read without reading the whole image."""

import io
import zlib
from typing import BinaryIO, NamedTuple

HEAD_BYTES = 4096
TAIL_BYTES = 64


class ImageChecksum(NamedTuple):
    """A checksum of an encoded image.

    Attributes:
        length: Length of the encoded image, bytes.
        crc: CRC-32 of its first 4096 and its last 64 bytes: metadata and tables, and the end of the compressed pixels.
    """

    length: int
    crc: int


class Ends(NamedTuple):
    """The two ends of an encoded image, which overlap if it is short.

    Attributes:
        length: Length of the encoded image, bytes.
        head: Its first 4096 bytes.
        tail: Its last 64 bytes.
    """

    length: int
    head: bytes
    tail: bytes

    @property
    def checksum(self) -> ImageChecksum:
        """The checksum of the image."""
        return ImageChecksum(self.length, zlib.crc32(self.tail, zlib.crc32(self.head)))


def read_ends(stream: BinaryIO) -> Ends:
    """Reads both ends of an encoded image, and moves the stream back to the start."""
    head = stream.read(HEAD_BYTES)
    length = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, length - TAIL_BYTES))
    tail = stream.read()
    stream.seek(0)
    return Ends(length, head, tail)
