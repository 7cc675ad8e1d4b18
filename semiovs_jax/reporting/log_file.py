"""A file that lines are appended to. An object cannot be appended to: its whole content is uploaded again."""

import os
import time
from pathlib import Path
from typing import Protocol

from data_pipelines.files import is_remote

_UPLOAD_SECONDS = 60.0  # at least, between the uploads of lines that no checkpoint needs yet


class LogFile(Protocol):
    """An open log. Its methods raise OSError."""

    def write(self, line: bytes) -> None:
        """Appends a line. On this machine, readers see it then; on object storage, within about a minute."""

    def sync(self) -> None:
        """Returns when all lines are on disk, or uploaded."""

    def close(self) -> None:
        """Closes the file, after a `sync` on object storage."""


def open_log(path: Path, content: bytes) -> LogFile:
    """Opens a log to continue it.

    Args:
      path: the file, which exists.
      content: what it holds.
    """
    return _UploadedLog(path, content) if is_remote(path) else _LocalLog(path)


class _LocalLog:
    def __init__(self, path: Path):
        self._file = path.open("ab")

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _UploadedLog:
    def __init__(self, path: Path, content: bytes):
        self._path = path
        self._content = bytearray(content)
        self._uploaded = len(content)
        self._time = time.monotonic()

    def write(self, line: bytes) -> None:
        self._content += line
        if time.monotonic() > self._time + _UPLOAD_SECONDS:
            self.sync()

    def sync(self) -> None:
        if len(self._content) > self._uploaded:
            self._path.write_bytes(bytes(self._content))
            self._uploaded = len(self._content)
        self._time = time.monotonic()

    def close(self) -> None:
        self.sync()
