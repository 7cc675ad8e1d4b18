"""Checksums of images, and the check of a PNG's chunks."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_pipelines.images.checksums import HEAD_BYTES, TAIL_BYTES, read_ends
from data_pipelines.images.png import read_texts

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)


def checksum(data: bytes):
    return read_ends(io.BytesIO(data)).checksum


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_checksum_is_of_length_and_both_ends():
    data = bytes(range(256)) * 40
    found = checksum(data)
    assert found.length == len(data)
    assert checksum(data) == found
    for at in (0, HEAD_BYTES - 1, len(data) - TAIL_BYTES, len(data) - 1):
        assert checksum(flipped(data, at)) != found
    assert checksum(data[: HEAD_BYTES + 9] + data[HEAD_BYTES + 8 :]) != found


@pytest.mark.parametrize("data", [b"", b"x", b"xy" * 60])
def test_short_files_have_checksums(data):
    stream = io.BytesIO(data)
    assert read_ends(stream).checksum.length == len(data)
    assert stream.tell() == 0


def png(texts: dict[str, str]) -> bytes:
    info, stream = PngInfo(), io.BytesIO()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.fromarray(NOISE).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def test_texts_are_read():
    assert read_texts(png({})) == {}
    assert read_texts(png({"one": "1 2", "two": ""})) == {"one": "1 2", "two": ""}


def test_any_flipped_bit_and_any_truncation_is_found():
    data = png({"one": "1"})
    for at in range(0, len(data), 13):
        with pytest.raises(ValueError, match=r"PNG|CRC"):
            read_texts(flipped(data, at))
        with pytest.raises(ValueError, match="PNG"):
            read_texts(data[:at])
