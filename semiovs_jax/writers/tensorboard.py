"""TensorBoard's event file, written by the caller's thread: what the disk refuses reaches the run.

tensorboardX's own `SummaryWriter` writes in a thread. If the disk is full, that thread ends, and the run waits forever.
"""

import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from data_pipelines.files import is_remote
from data_pipelines.temporary import temporary_folder
from semiovs_jax.writers.base import RunFacts, Writer

_FLUSH_SECONDS = 120.0
_LONGEST_UPLOAD = 4 << 20  # bytes


class Board:
    """An event file of scalars, images and texts.

    Args:
      folder: folder of the file; created if missing.
      purge_step: TensorBoard hides the events of earlier files from this step on.

    Raises:
      OSError: raised by every method: the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int):
        self._files = _uploaded_files(folder) if is_remote(folder) else _local_files(folder)
        self._events = next(self._files)
        self._flushed = 0.0
        self._closed = False
        self._write(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers by tag."""
        for tag, value in values.items():
            self._write(Event(summary=summary.scalar(tag, value)), step)

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Adds an image, uint8 [H, W, 3]."""
        self._write(Event(summary=summary.image(tag, image, dataformats="HWC")), step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a preformatted text."""
        self._write(Event(summary=summary.text(tag, f"```\n{text}\n```")), step)

    def finish(self, values: Mapping[str, float]) -> None:
        """Adds nothing: TensorBoard shows numbers over steps."""

    def close(self, finished: bool = True) -> None:
        """Writes what is buffered and closes the file; does nothing the second time."""
        if not self._closed:
            self._closed = True
            self._events.close()
            self._files.close()

    def _write(self, event: Any, step: int) -> None:
        event.step = step
        event.wall_time = time.time()
        self._events.write_event(event)
        if event.wall_time > self._flushed + _FLUSH_SECONDS:
            self._events.flush()
            self._events = next(self._files)
            self._flushed = event.wall_time


def _local_files(folder: Path) -> Generator[EventsWriter, None, None]:
    """The file of a board after each flush: one file."""
    folder.mkdir(parents=True, exist_ok=True)
    events = EventsWriter(str(folder / "events"))
    while True:
        yield events


def _uploaded_files(folder: Path) -> Generator[EventsWriter, None, None]:
    """The file of a board after each flush, when it is uploaded, as at the end: a new file once it is long.

    Objects cannot be appended to, so that one long file would be uploaded again and again.
    """
    with temporary_folder() as local:
        while True:
            events, length = EventsWriter(str(Path(local, f"events{time.time_ns()}"))), 0
            while length < _LONGEST_UPLOAD:
                try:
                    yield events
                finally:
                    (file,) = Path(local).iterdir()
                    content = file.read_bytes()
                    length = len(content)
                    (folder / file.name).write_bytes(content)
            events.close()
            file.unlink()


def open_writer(facts: RunFacts) -> Writer:
    """A new event file in WORKDIR/tensorboard."""
    return Board(facts.workdir / "tensorboard", purge_step=facts.after_step + 1)
