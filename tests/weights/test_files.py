import json
import os
import stat
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import (
    load_weights,
    read_metadata,
    read_safetensors,
    save_weights,
    tensors_sha256,
)

FLAT = {"layer1/0/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bn/mean": np.ones(3, np.float16)}


def test_round_trip_with_metadata(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    save_weights(path, FLAT, {"source_sha256": "abc"})
    arrays, metadata = load_weights(path)
    assert arrays.keys() == FLAT.keys()
    for name, value in FLAT.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == value.dtype
    assert metadata == {"source_sha256": "abc", "sha256": tensors_sha256(FLAT)}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path, umask: int, mode: int):
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "w", FLAT, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == mode


def test_digest_sees_name_type_shape_and_value_but_not_order():
    value = np.zeros((2, 3), np.float32)
    digest = tensors_sha256({"a": value})
    assert digest != tensors_sha256({"b": value})
    assert digest != tensors_sha256({"a": value.view(np.int32)})
    assert digest != tensors_sha256({"a": value.reshape(3, 2)})
    assert digest != tensors_sha256({"a": value + 1})
    assert tensors_sha256(FLAT) == tensors_sha256(dict(reversed(FLAT.items())))


def test_transposed_arrays_are_saved_by_value(tmp_path):
    save_weights(tmp_path / "w", {"a": FLAT["layer1/0/kernel"].T}, {})
    np.testing.assert_array_equal(load_weights(tmp_path / "w")[0]["a"], FLAT["layer1/0/kernel"].T)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"w\.safetensors: no such weights file"):
        load_weights(tmp_path / "w.safetensors")


def test_not_safetensors(tmp_path):
    (tmp_path / "w").write_bytes(b"PK\x03\x04 a torch file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_weights(tmp_path / "w")


def write_header(path, header: dict, content: bytes = b"", length: int | None = None) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content)


def tensor(start: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({}, 1 << 60),
        ({"a": tensor(0, 1 << 60, shape=(1 << 58,))}, None),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, None),
        ({"a": tensor(-8, 0)}, None),
    ],
)
def test_headers_that_claim_what_is_not_there_are_refused(tmp_path, header, length):
    write_header(tmp_path / "w", header, bytes(12), length)
    for read in (read_safetensors, read_metadata, load_weights):
        with pytest.raises(InputError, match="w: not a readable safetensors file"):
            read(tmp_path / "w")


def test_types_that_numpy_lacks_are_refused_by_name(tmp_path):
    write_header(tmp_path / "w", {"a": tensor(0, 2, "F8_E4M3")}, bytes(2))
    with pytest.raises(InputError, match="w: the tensor 'a' has a type that numpy lacks"):
        read_safetensors(tmp_path / "w")


def test_foreign_safetensors(tmp_path):
    save_file(FLAT, tmp_path / "w")
    with pytest.raises(InputError, match="not converted weights"):
        load_weights(tmp_path / "w")


def test_flipped_byte(tmp_path):
    save_weights(tmp_path / "w", FLAT, {})
    data = bytearray((tmp_path / "w").read_bytes())
    data[-1] ^= 1
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        load_weights(tmp_path / "w")


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / ("long" * 62 + ".safetensors")
    with pytest.raises(InputError, match=r"long\.safetensors: cannot be written \(.*\); make room or choose a folder"):
        save_weights(path, {"a": np.ones(1)}, {})
    assert not list(tmp_path.iterdir())
