"""Hypothesis strategies that change the content of a valid file."""

import copy
import json
import struct
from typing import Any

from hypothesis import strategies as st

_TOKENS = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b'"',
    b"\\",
    b"#",
    b"..",
    b"/",
    b"~",
    b"\xef\xbb\xbf",
    "\u2028\u0085".encode(),
    b"-1",
    b"9" * 30,
]
_ODD_VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    2**31,
    2**63,
    10**30,
    float("inf"),
    float("nan"),
    "",
    " ",
    "~nobody",
    "..",
    "\0",
    "\ud800",
    "a\nb",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": 1},
]


def changed(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """The content of a file, changed by bytes or, where the file holds JSON, by values."""
    if name.endswith(".json"):
        return changed_bytes(content) | changed_json(content)
    if name.endswith(".safetensors"):
        return changed_bytes(content) | changed_header(content)
    return changed_bytes(content)


@st.composite
def changed_bytes(draw: Any, content: bytes) -> bytes:
    """One to four changes: a byte, the end, a piece that is inserted, removed, copied or repeated very often."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(("byte", "end", "insert", "token", "remove", "copy", "repeat")))
        if kind == "byte" and data:
            data[start] ^= draw(st.integers(1, 255))
        elif kind == "end":
            del data[start:]
        elif kind == "insert":
            data[start:start] = draw(st.binary(max_size=16))
        elif kind == "token":
            data[start : start + draw(st.integers(0, 8))] = draw(st.sampled_from(_TOKENS))
        elif kind == "remove":
            del data[start : start + length]
        elif kind == "copy":
            other = draw(st.integers(0, max(0, len(data) - 1)))
            data[start : start + length] = data[other : other + length]
        elif kind == "repeat":
            data[start:start] = data[start : start + length] * draw(st.sampled_from((2, 100, 10_000)))
    return bytes(data)


@st.composite
def changed_json(draw: Any, content: bytes) -> bytes:
    """JSON of which one to three values are others, moved or missing."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        value = _with_change(draw, value)
    return json.dumps(value).encode()


@st.composite
def changed_header(draw: Any, content: bytes) -> bytes:
    """A safetensors file with another header, or another length of it."""
    (length,) = struct.unpack_from("<Q", content)
    header = draw(changed_json(content[8 : 8 + length]) | changed_bytes(content[8 : 8 + length]))
    claimed = draw(st.just(len(header)) | st.sampled_from((0, 1, 2**31, 2**60, 2**64 - 1)))
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def _with_change(draw: Any, value: Any) -> Any:
    """A copy of a JSON value with one change at any depth."""
    places = list(_places(value))
    if not places:
        return draw(st.sampled_from(_ODD_VALUES))
    value = copy.deepcopy(value)
    path = draw(st.sampled_from(places))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    kind = draw(st.sampled_from(("odd", "odd", "remove", "copy", "wrap")))
    if kind == "odd":
        holder[path[-1]] = draw(st.sampled_from(_ODD_VALUES))
    elif kind == "remove":
        del holder[path[-1]]
    elif kind == "copy":
        found: Any = value
        for key in draw(st.sampled_from(places)):
            found = found[key]
        holder[path[-1]] = copy.deepcopy(found)
    else:
        holder[path[-1]] = [holder[path[-1]]]
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from _places(value[key], (*path, key))
