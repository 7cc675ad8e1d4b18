"""Checks a PNG without decoding it: every chunk has a CRC-32, which decoders do not check in the compressed pixels."""

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">I4s")
_CRC = struct.Struct(">I")


def read_texts(data: bytes) -> dict[str, str]:
    """Checks all chunks of a PNG and returns its texts by keyword.

    Args:
        data: The file.

    Raises:
        ValueError: The file is not a PNG, is truncated, or a chunk does not have its CRC.
    """
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG")
    texts: dict[str, str] = {}
    view, start = memoryview(data), len(_SIGNATURE)
    try:
        while True:
            length, kind = _HEADER.unpack_from(data, start)
            content, end = start + _HEADER.size, start + _HEADER.size + length
            if (found := zlib.crc32(view[start + 4 : end])) != (expected := _CRC.unpack_from(data, end)[0]):
                raise ValueError(f"a chunk has the CRC {found:08x}, expected {expected:08x}")
            if kind == b"IEND":
                return texts
            if kind == b"tEXt":
                keyword, _, text = data[content:end].partition(b"\0")
                texts[keyword.decode("latin-1")] = text.decode("latin-1")
            start = end + _CRC.size
    except struct.error:
        raise ValueError("truncated PNG") from None
