"""What the threads and processes that read records tell the one that trains: bad records, and what each holds now.

Notes are files in a temporary folder of this machine, so that they outlive a worker that is killed.
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
    """A temporary folder that goes with the object that made it; its copies in other processes only use it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="semiovs_jax_"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path


class BadRecords:
    """The records that could not be read: each is logged once, and too many are an error.

    Threads, and processes that got a copy, share the count.
    """

    def __init__(self, maximum: int):
        self._maximum = maximum
        self._folder = SharedFolder()
        self._notes: dict[str, tuple[str, str]] = {}  # id and message by name of the file
        self._logged = 0
        self._is_copy = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_maximum": self._maximum, "_folder": self._folder, "_notes": {}, "_logged": 0, "_is_copy": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def add(self, id_: str, error: UnreadableError) -> None:
        """Notes that the record `id_` could not be read.

        Raises:
            InputError: More records than `config.data.max_bad_records` could not be read.
        """
        path = self._folder.path / f"{hashlib.sha256(id_.encode()).hexdigest()}.txt"
        if not path.exists():
            replace_file(path, f"{id_}\n{error}")
        self.log()
        if len(names := self.names()) > self._maximum:
            earlier = ", ".join(names[:5])
            raise InputError(
                f"{error}; {len(names)} record(s) cannot be read and config.data.max_bad_records={self._maximum} "
                f"({earlier}): mend or remove the file(s), or raise the limit"
            ) from error

    def log(self) -> None:
        """Logs the records noted by anyone since the last call; copies in other processes leave it to this one."""
        if self._is_copy:
            return
        with self._lock:
            notes = self._read()
            new, self._logged = notes[self._logged :], len(notes)
        for id_, message in new:
            logging.getLogger(__name__).warning("bad record %s skipped: %s", id_, message)

    def names(self) -> tuple[str, ...]:
        """The ids of the records noted so far, in the order they were met."""
        with self._lock:
            return tuple(id_ for id_, _ in self._read())

    def _read(self) -> list[tuple[str, str]]:
        """All notes, of which only new ones are opened: this is asked for at every batch."""
        new = [path for path in self._folder.path.glob("*.txt") if path.name not in self._notes]
        for path in sorted(new, key=lambda path: path.stat().st_mtime_ns):
            id_, _, message = path.read_text(encoding="utf-8").partition("\n")
            self._notes[path.name] = id_, message
        return list(self._notes.values())


class Holding(NamedTuple):
    """What one thread of one process works on.

    Attributes:
        process: Its process id.
        record: Name of the record.
        seconds: For how long.
    """

    process: int
    record: str
    seconds: float


class HeldRecords:
    """The record that each thread of each worker holds at this moment."""

    def __init__(self) -> None:
        self._folder = SharedFolder()

    @contextlib.contextmanager
    def hold(self, record: str) -> Iterator[None]:
        """Notes that this thread works on a record until the context ends."""
        note = self._note().fileno()
        os.pwrite(note, f"{time.time()} {record}".encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES, b"\0"), 0)
        try:
            yield
        finally:
            os.pwrite(note, b"\0", 0)

    def holdings(self) -> list[Holding]:
        """What is held now, by the living and the dead, the longest first."""
        found = []
        for path in self._folder.path.iterdir():
            note = path.read_bytes()
            if note[:1].strip(b"\0"):
                since, record = note.rstrip(b"\0").decode(errors="replace").split(" ", 1)
                found.append(Holding(int(path.name.partition("-")[0]), record, time.time() - float(since)))
        return sorted(found, key=lambda holding: -holding.seconds)

    def _note(self) -> io.FileIO:
        """This thread's note, kept open: opening a file for every record would cost more than writing to it."""
        notes = _open_notes.__dict__.setdefault("notes", {})
        folder = self._folder.path
        if folder not in notes:
            notes[folder] = io.FileIO(folder / f"{os.getpid()}-{threading.get_native_id()}", "w")
        return notes[folder]


_open_notes = threading.local()  # files close with their thread
