"""Traces a few steps of a run with JAX's profiler, for XProf."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from data_pipelines.files import is_remote
from data_pipelines.temporary import temporary_folder

_logger = logging.getLogger(__name__)


class Profile:
    """Writes a trace of some steps of a start. Only process 0 writes. It changes no number.

    It waits for the devices before the first of these steps and after the last: the trace has whole steps. A trace that
    cannot be written is a warning. Writing takes seconds, which count in the speed of the next log line.

    Example:
      with Profile(workdir / "profile", (10, 15), first_step, total_steps) as profile:
          for step in range(first_step + 1, total_steps + 1):
              profile.before(step, state)
              state, metrics = train_step(state, next(batches))
              profile.after(step, metrics)
    """

    def __init__(self, folder: Path, steps: Sequence[int], first_step: int, total_steps: int):
        """Prepares a loop.

        Args:
          folder: of the traces; each has a folder of its own below it, named by its time.
          steps: the first and the last step to trace, counted from 1 at this start; (0, 0) or () for none.
          first_step: updates done before the loop.
          total_steps: the last step of the run.
        """
        self._folder = folder
        self._steps = range(0)
        self._annotation = contextlib.ExitStack()
        self._closing = contextlib.ExitStack()
        self._tracing = False
        if any(steps) and jax.process_index() == 0:
            self._steps = range(first_step + steps[0], min(first_step + steps[1], total_steps) + 1)
            if not self._steps:
                _logger.warning(
                    "config.train.profile_steps=%s: this start has %d steps, so none is traced; set earlier ones",
                    tuple(steps),
                    total_steps - first_step,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._annotation.close()
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """Must be called before each step.

        Args:
          step: its number.
          state: of the step before, on the devices.
        """
        if step not in self._steps:
            return
        if step == self._steps[0]:
            jax.block_until_ready(state)
            self._start()
        if self._tracing:
            self._annotation.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def after(self, step: int, results: Any) -> None:
        """Must be called after each step.

        Args:
          step: its number.
          results: of it, on the devices.
        """
        self._annotation.close()
        if self._tracing and step == self._steps[-1]:
            jax.block_until_ready(results)
            self._stop()

    def _start(self) -> None:
        try:
            local = self._folder
            if is_remote(local):
                local = Path(self._closing.enter_context(temporary_folder()))
                self._closing.callback(_upload, local, self._folder)
            local.mkdir(parents=True, exist_ok=True)  # if the profiler fails to, no other trace can be started
            jax.profiler.start_trace(local)
        except (OSError, RuntimeError) as error:
            _logger.warning("%s: no trace is written (%s)", self._folder, error)
        else:
            self._tracing = True

    def _stop(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
            self._closing.close()
        except (OSError, RuntimeError) as error:
            _logger.warning("%s: the trace cannot be written (%s)", self._folder, error)
        else:
            _logger.info(
                "steps %d to %d are traced; to look at them: pip install xprof && xprof --logdir=%s",
                self._steps[0],
                self._steps[-1],
                self._folder,
            )


def _upload(folder: Path, to: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder)).write_bytes(file.read_bytes())
