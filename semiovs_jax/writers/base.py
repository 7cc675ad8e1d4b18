"""What a writer is, and what it is opened with."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class WriterError(Exception):
    """A writer's service cannot be reached, or refuses what is written. The run goes on without the writer."""


@contextlib.contextmanager
def service_errors() -> Iterator[None]:
    """Turns every exception of a block, or of a function that it decorates, into a `WriterError`."""
    try:
        yield
    except Exception as error:  # packages of services raise errors of many libraries
        raise WriterError(f"{type(error).__name__}: {error}") from error


class RunFacts(NamedTuple):
    """What a writer knows of a run.

    Attributes:
      workdir: folder of the run.
      after_step: number of steps that are done; what was written of later steps is written again.
      config: every config value, nested, as plain data.
    """

    workdir: Path
    after_step: int
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The last two folders of the workdir, "runs/demo": "seed_0" alone would not tell runs apart."""
        return "/".join(self.workdir.absolute().parts[-2:])


class Writer(Protocol):
    """Writes the metrics of a run in a format of its own, in process 0 alone.

    Raises:
      OSError: raised by every method: a local file cannot be written, which ends the run.
      WriterError: raised by every method: see there.
    """

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers by tag, such as "train/loss". They may be infinite or no numbers."""

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Adds an image, uint8 [H, W, 3]."""

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a preformatted text."""

    def finish(self, values: Mapping[str, float]) -> None:
        """Adds the result of a finished run by name, such as "best_miou"."""

    def close(self, finished: bool) -> None:
        """Writes what is buffered and ends the writer.

        Args:
          finished: whether the run is finished; otherwise it has failed, or was stopped and may continue.
        """
