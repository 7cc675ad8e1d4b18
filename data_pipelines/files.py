"""Paths that a user writes, atomic file writes, JSON files and names."""

import contextlib
import fcntl
import json
import re
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import InputError

_ABANDONED_SECONDS = 600.0  # older partial files of other machines belong to dead writers
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # one slash: pathlib joins two


def expand(path: str | Path) -> Path:
    """The path with a leading `~` or `~USER` replaced by the home folder.

    Raises:
        InputError: The user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no home folder of that name; write the whole path") from error


def local_path(path: str | Path, field: str) -> Path:
    """The expanded path of a file or folder that is read and written in place.

    Args:
        path: The path; `~` is expanded.
        field: The name of the path in error messages.

    Raises:
        InputError: The path is a URL.
    """
    if _URL.match(str(path)):
        raise InputError(
            f"{field}={path}: URLs are not supported yet; name a folder of this machine or of mounted storage"
        )
    return expand(path)


@contextlib.contextmanager
def whole_file(path: Path, *, remedy: str = "choose a folder you may write to") -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` at the end: readers never see a partial file.

    Processes on several machines may write the same file at the same time. The folder of the file is created. A lock on
    the temporary file ends with its process, however that ends: see `remove_abandoned_parts`.

    Args:
        path: The file.
        remedy: What to do if the file cannot be written although there is room.

    Raises:
        InputError: The file cannot be written.
    """
    part = path.with_name(f"{path.name}.{_HOST}{uuid.uuid4().hex[:24]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield part
            part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room or {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def replace_file(path: Path, content: str | bytes, **options: str) -> None:
    """Writes text (as UTF-8) or bytes atomically; options and errors are those of `whole_file`."""
    with whole_file(path, **options) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_abandoned_parts(folder: Path) -> None:
    """Removes the partial files of dead writers below a folder.

    Those of this machine are locked while they are written. The others, and all where the file system has no locks, are
    abandoned if they were not written to for ten minutes.
    """
    for part in folder.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # its writer has renamed it meanwhile
            if _is_abandoned(part):
                part.unlink()


def _is_abandoned(part: Path) -> bool:
    if part.suffixes[-2:-1] and part.suffixes[-2].startswith(f".{_HOST}"):
        with part.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks
                pass
    return abs(time.time() - part.stat().st_mtime) > _ABANDONED_SECONDS  # clocks of machines may differ


def is_utf8(name: str) -> bool:
    """Whether a name is UTF-8. Python shows other bytes of a file's name as surrogates, which cannot be encoded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Reads a JSON file, with or without a byte order mark.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8 text, not JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
