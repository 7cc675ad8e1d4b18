"""Detects preemption (SIGTERM) without blocking a step."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

_logger = logging.getLogger(__name__)


class Preemption:
    """Detects when the loop must save and stop.

    Under `jax.distributed`, JAX itself catches SIGTERM on any process, and all processes agree on one step; a Python
    handler would disable that. Otherwise SIGTERM and the first SIGINT only set a flag; a second SIGINT raises
    KeyboardInterrupt.

    Example:
      with Preemption() as preemption:
          for step in range(first_step, total_steps):
              state = train_step(state, next(batches))
              if preemption.reached(step + 1):
                  checkpointer.save(step + 1, state, ...)
                  break
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers only in the main thread.
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def reached(self, step: int) -> bool:
        """Whether to save after this step and stop.

        Every process must call this after every step, with the same step. Does not wait for a device.

        Args:
          step: updates done.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = signal.Signals(number)
        _logger.warning("%s: the run saves a checkpoint after this step and stops", self._signal.name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
