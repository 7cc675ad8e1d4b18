"""Object storage: paths below gs:// and s3://, with the methods of `pathlib.Path`.

An object is written whole or not at all, and cannot be appended to. A folder is there while an object is below it.
"""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import io
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from etils.epath.gpath import PosixGPath

from data_pipelines.temporary import temporary_folder

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before another attempt, each longer by a random half at most
_PASSED_ON = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

# Orbax writes by other clients, whose objects a cached listing does not show.
for _protocol in ("gcs", "gs", "s3", "s3a"):
    fsspec.config.conf.setdefault(_protocol, {}).setdefault("use_listings_cache", False)

Result = TypeVar("Result")


class ObjectPath(PosixGPath):
    """The path of an object, or of all objects below a prefix.

    Raises:
      OSError: raised by every method that asks the server: it refuses, or cannot be reached for about a minute.
    """

    def absolute(self) -> "ObjectPath":
        """The path itself."""
        return self

    def exists(self) -> bool:
        """Whether there is such an object, or an object below this prefix."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there is an object below this prefix."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator["ObjectPath"]:
        """The objects and prefixes directly below, sorted; none if there are none."""
        try:
            found = self._ask("ls", detail=False)
        except FileNotFoundError:
            found = []
        names = (path.rstrip("/").rpartition("/")[2] for path in found if self._below(path))
        return iter([self / name for name in sorted(names)])

    def files(self) -> list[str]:
        """Paths of all objects below, relative to this path, sorted: a request for each thousand."""
        return sorted(path for found in self._ask("find") if (path := self._below(found)))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """The objects and prefixes that match a pattern, which may have several parts."""
        found = _patiently(self, lambda: self._system.glob(f"{self}/{pattern}"))
        return (self / self._below(path) for path in sorted(found))

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """All objects below whose names match a pattern without "/"."""
        return (self / path for path in self.files() if fnmatch.fnmatchcase(path.rpartition("/")[2], pattern))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing."""

    def rmdir(self) -> None:
        """Does nothing."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object; S3 does not tell whether there was one."""
        try:
            self._ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes all objects below."""
        for path in self.files():
            (self / path).unlink(missing_ok=True)

    def rename(self, target: Any) -> "ObjectPath":
        """Copies the object or all objects below, and removes each; a kill leaves a part of them here."""
        moved = ObjectPath(str(target))
        for path in [""] if self.is_file() else self.files():
            source, copy = str(self / path), str(moved / path)
            _patiently(self, functools.partial(self._system.cp_file, source, copy))
            (self / path).unlink(missing_ok=True)
        return moved

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Writes an empty object, unless there is one."""
        if not self.exists():
            self.write_bytes(b"")

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:
        """The whole object in memory, for reading: "rb" or "r"."""
        content = io.BytesIO(self.read_bytes())
        if mode == "rb":
            return content
        if mode == "r":
            return io.TextIOWrapper(content, **{"encoding": "utf-8", **options})
        raise ValueError(f"mode {mode!r}: an object is read by open, and written by write_bytes")

    def read_bytes(self) -> bytes:
        """The bytes of the object."""
        return self._ask("cat_file")

    def read_text(self, encoding: str | None = "utf-8", errors: str | None = None) -> str:
        """The text of the object."""
        return self.open("r", encoding=encoding, errors=errors).read()

    def write_bytes(self, data: bytes) -> int:
        """Replaces the object."""
        self._ask("pipe_file", bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = "utf-8", errors: str | None = None) -> int:
        """Replaces the object by a text."""
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def upload(self, file: Path) -> None:
        """Replaces the object by a local file."""
        _patiently(self, lambda: self._system.put_file(str(file), str(self)))

    def download(self, file: Path) -> None:
        """Writes the object to a local file."""
        _patiently(self, lambda: self._system.get_file(str(self), str(file)))

    def version(self) -> str:
        """Changes with the object."""
        return str(self._ask("ukey"))

    @property
    def _system(self) -> Any:
        return fsspec.filesystem(self.parts[1])

    def _kind(self) -> str | None:
        try:
            return self._ask("info")["type"]
        except FileNotFoundError:
            return None

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        return _patiently(self, lambda: getattr(self._system, method)(str(self), *args, **options))

    def _below(self, found: str) -> str:
        """A path that the file system returns ("bucket/a/b"), relative to this one; "" for itself."""
        return found.removeprefix("/".join(self.parts[2:])).strip("/")


def _patiently(path: ObjectPath, ask: Callable[[], Result]) -> Result:
    """The answer of the server, which is asked again if it fails or cannot be reached.

    Clients retry by themselves, but not all requests, and s3fs for about a second.
    """
    for wait in (*_WAITS, None):
        try:
            return ask()
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        except _PASSED_ON:
            raise
        except Exception as error:  # of aiohttp, botocore, google.auth and the clients
            if wait is None or not _is_transient(error):
                if isinstance(error, OSError) and error.strerror:
                    raise
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(path)) from error
            time.sleep(wait * random.uniform(1, 1.5))
    raise AssertionError


def _is_transient(error: BaseException | None) -> bool:
    """Whether a later attempt may succeed: the server was not reached, or has failed itself."""
    while error is not None:
        code = getattr(error, "code", None) or getattr(error, "status", None)
        if isinstance(error, ConnectionError | TimeoutError) or str(code) in ("408", "429") or str(code)[:1] == "5":
            return True
        if type(error).__name__ in _TRANSIENT or getattr(error, "errno", None) in (errno.EIO, errno.EBUSY):
            return True
        error = error.__cause__
    return False


_TRANSIENT = frozenset(
    {
        "ClientConnectionError",
        "ClientConnectorError",
        "ClientOSError",
        "ClientPayloadError",
        "ConnectionError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "HTTPClientError",
        "ProxyError",
        "ReadTimeoutError",
        "ServerDisconnectedError",
    }
)  # by name, so that no package of a provider is needed


@functools.cache
def _cache() -> "tempfile.TemporaryDirectory[str]":
    return temporary_folder()


def local_copy(path: ObjectPath) -> Path:
    """A local file with the content of an object, for readers that map files into memory.

    It is below $TMPDIR, downloaded once a process, and removed when the process ends.
    """
    name = hashlib.sha256(f"{path} {path.version()}".encode()).hexdigest()[:16]
    copy = Path(_cache().name, name, path.name)
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        part = copy.with_name(f"{copy.name}.part")
        path.download(part)
        part.replace(copy)
    return copy


@contextlib.contextmanager
def whole_object(path: ObjectPath) -> Iterator[Path]:
    """Yields a local path to write to, and uploads the file at the end."""
    with temporary_folder() as folder:
        part = Path(folder, path.name)
        part.touch()
        yield part
        path.upload(part)
