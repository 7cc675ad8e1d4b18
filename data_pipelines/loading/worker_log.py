"""Messages from data workers to the training process: unreadable records, and the record that each worker reads.

The messages are files in a temporary folder of this machine, so that they survive a killed worker.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from data_pipelines.sources.records import UnreadableError

_NOTE_BYTES = 1024


class SharedFolder:
    """A temporary folder, deleted with the object that made it. Copies in other processes only use it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="semiovs_jax_"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path


class BadRecords:
    """The unreadable records. Each is logged once, and too many are an error.

    Threads share the count. Processes with a copy of this object share it, too.
    """

    def __init__(self, maximum: int):
        self._maximum = maximum
        self._folder = SharedFolder()
        self._notes: dict[str, tuple[str, str]] = {}  # id and message by file name
        self._logged = 0
        self._is_copy = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_maximum": self._maximum, "_folder": self._folder, "_notes": {}, "_logged": 0, "_is_copy": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def add(self, id_: str, error: UnreadableError) -> None:
        """Adds the unreadable record `id_`.

        Raises:
            InputError: More than `config.data.max_bad_records` records are unreadable.
        """
        path = self._folder.path / f"{hashlib.sha256(id_.encode()).hexdigest()}.txt"
        if not path.exists():
            replace_file(path, f"{id_}\n{error}")
        self.log()
        if len(names := self.names()) > self._maximum:
            earlier = ", ".join(names[:5])
            raise InputError(
                f"{error}; {len(names)} record(s) cannot be read and config.data.max_bad_records={self._maximum} "
                f"({earlier}): fix or remove the file(s), or raise the limit"
            ) from error

    def log(self) -> None:
        """Logs the records that any process added since the last call. Does nothing in copies in other processes."""
        if self._is_copy:
            return
        with self._lock:
            notes = self._read()
            new, self._logged = notes[self._logged :], len(notes)
        for id_, message in new:
            logging.getLogger(__name__).warning("bad record %s skipped: %s", id_, message)

    def names(self) -> tuple[str, ...]:
        """The ids of the unreadable records so far, in the order in which they were found."""
        with self._lock:
            return tuple(id_ for id_, _ in self._read())

    def _read(self) -> list[tuple[str, str]]:
        """Reads all notes. Opens only the new ones, because this runs at every batch."""
        new = [path for path in self._folder.path.glob("*.txt") if path.name not in self._notes]
        for path in sorted(new, key=lambda path: path.stat().st_mtime_ns):
            id_, _, message = path.read_text(encoding="utf-8").partition("\n")
            self._notes[path.name] = id_, message
        return list(self._notes.values())


class Holding(NamedTuple):
    """The record that one thread of a process is reading.

    Attributes:
        process: The process id.
        record: Name of the record.
        seconds: Time since the thread began to read it.
    """

    process: int
    record: str
    seconds: float


class HeldRecords:
    """The record that each thread of each worker is reading now."""

    def __init__(self) -> None:
        self._folder = SharedFolder()

    @contextlib.contextmanager
    def hold(self, record: str) -> Iterator[None]:
        """Notes that this thread reads `record` until the context ends."""
        note = self._note().fileno()
        os.pwrite(note, f"{time.time()} {record}".encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES, b"\0"), 0)
        try:
            yield
        finally:
            os.pwrite(note, b"\0", 0)

    def holdings(self) -> list[Holding]:
        """The records being read now, also those of dead workers, longest first."""
        found = []
        for path in self._folder.path.iterdir():
            note = path.read_bytes()
            if note[:1].strip(b"\0"):
                since, record = note.rstrip(b"\0").decode(errors="replace").split(" ", 1)
                found.append(Holding(int(path.name.partition("-")[0]), record, time.time() - float(since)))
        return sorted(found, key=lambda holding: -holding.seconds)

    def _note(self) -> io.FileIO:
        """The note file of this thread, kept open: opening it for each record would cost more than writing to it."""
        notes = _open_notes.__dict__.setdefault("notes", {})
        folder = self._folder.path
        if folder not in notes:
            notes[folder] = io.FileIO(folder / f"{os.getpid()}-{threading.get_native_id()}", "w")
        return notes[folder]


_open_notes = threading.local()  # files are closed when their thread ends
