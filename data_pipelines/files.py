"""Paths that a user writes, atomic file writes, JSON files and names."""

import contextlib
import fcntl
import importlib.util
import json
import re
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from data_pipelines.errors import InputError

_ABANDONED_SECONDS = 600.0  # older partial files of other machines belong to dead writers
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)  # one slash: pathlib joins two
_OBJECT = re.compile(r"(gs|s3):/", re.IGNORECASE)
_CLIENTS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}  # extra and package by scheme
_MOUNTS = {"gs": "gcsfuse BUCKET /mnt/BUCKET", "s3": "mount-s3 BUCKET /mnt/BUCKET"}


def expand(path: str | Path) -> Path:
    """The path with a leading `~` or `~USER` replaced by the home folder.

    Raises:
        InputError: The user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no home folder of that name; write the whole path") from error


def is_remote(path: str | Path) -> bool:
    """Whether a path is on object storage: a URL of `as_path`, or such a path."""
    return bool(_OBJECT.match(str(path)))


def as_path(path: str | Path, field: str) -> Path:
    """The path of a file or folder on this machine, or on object storage.

    Args:
        path: A path, whose `~` is expanded; or a URL, gs://BUCKET/PATH or s3://BUCKET/PATH.
        field: The name of the path in error messages.

    Returns:
        A path of this machine; for a URL a `storage.ObjectPath`, which has the same methods. It does not survive
        `pathlib.Path(...)`: pass it on as it is, or its `str` to this function.

    Raises:
        InputError: The URL is of another kind, has no bucket, or the package that reads it is not installed.
    """
    url = _URL.match(str(path))
    if url is None:
        return expand(path)
    scheme, rest = url[1].lower(), str(path)[url.end() :].strip("/")
    if scheme not in _CLIENTS or not rest:
        raise InputError(
            f"{field}={path}: not a URL of object storage; write gs://BUCKET/PATH or s3://BUCKET/PATH, or name a "
            "folder of this machine or of mounted storage"
        )
    extra, package = _CLIENTS[scheme]
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{field}={path}: the package {package} is not installed; run pip install 'semiovs-jax[{extra}]'"
        )
    from data_pipelines.storage import ObjectPath  # slow import

    return cast(Path, ObjectPath(f"{scheme}://{rest}"))


def local_path(path: str | Path, field: str) -> Path:
    """The expanded path of a file or folder that is on this machine.

    Args:
        path: The path; `~` is expanded.
        field: The name of the path in error messages.

    Raises:
        InputError: The path is a URL.
    """
    if fault := url_fault(path, field):
        raise InputError(fault)
    return expand(path)


def url_fault(path: str | Path, field: str) -> str | None:
    """The fault of a path that must be on this machine, but is a URL; None if it is none."""
    url = _URL.match(str(path))
    if url is None:
        return None
    mount = _MOUNTS.get(url[1].lower())
    remedy = (
        f"mount the bucket ({mount}), and name the folder there: {field}=/mnt/BUCKET/..."
        if mount
        else "name a folder of this machine or of mounted storage"
    )
    return f"{field}={path}: a URL cannot be read here; {remedy}"


def objects_below(folder: Path) -> frozenset[str]:
    """The paths of all objects below a folder on object storage, relative to it: a request for each thousand."""
    return frozenset(cast(Any, folder).files())


def local_file(path: str | Path) -> Path:
    """The file itself, or for one on object storage a local copy, see `storage.local_copy`."""
    if not is_remote(path):
        return Path(path)
    from data_pipelines.storage import local_copy

    return local_copy(cast(Any, as_path(path, "file")))


@contextlib.contextmanager
def whole_file(path: Path, *, remedy: str = "choose a folder you may write to") -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` at the end: readers never see a partial file.

    On object storage, the file is uploaded at the end. Processes on several machines may write the same file at the
    same time. The folder of the file is created. A lock on the temporary file ends with its process, however that
    ends: see `remove_abandoned_parts`.

    Args:
        path: The file.
        remedy: What to do if the file cannot be written although there is room.

    Raises:
        InputError: The file cannot be written.
    """
    if is_remote(path):
        with _uploading(path, remedy) as part:
            yield part
        return
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


@contextlib.contextmanager
def _uploading(path: Path, remedy: str) -> Iterator[Path]:
    from data_pipelines.storage import whole_object

    try:
        with whole_object(cast(Any, path)) as part:
            yield part
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); restore access or {remedy}"
        ) from error


def replace_file(path: Path, content: str | bytes, **options: str) -> None:
    """Writes text (as UTF-8) or bytes atomically; options and errors are those of `whole_file`."""
    with whole_file(path, **options) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_abandoned_parts(folder: Path) -> None:
    """Removes the partial files of dead writers below a folder.

    Those of this machine are locked while they are written. The others, and all where the file system has no locks, are
    abandoned if they were not written to for ten minutes. Object storage has none.
    """
    if is_remote(folder):
        return
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
