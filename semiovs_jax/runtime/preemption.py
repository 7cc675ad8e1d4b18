"""Stops a training loop at a step that can be saved, on SIGINT or SIGTERM, without blocking a step."""

import contextlib
import datetime
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax._src.distributed import global_state  # the client of JAX's coordination service has no public name
from jax.experimental import multihost_utils

from data_pipelines.signals import STOP_SIGNALS, Stopped

_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # the key of JAX's preemption service; its value is a time
_SIGNAL = "semiovs_jax/stop_signal"


class Preemption:
    """Finds out when the loop must save and stop.

    While the context is open, SIGINT and SIGTERM only leave a note. Under `jax.distributed`, a signal to any process
    stops all of them after the same step: JAX's preemption service chooses it. Its own handler, of SIGTERM alone, would
    hide the signal from Python, so the handler here gives the notice to the service.

    Example:
      with Preemption(first_step) as preemption:
          for step in range(first_step + 1, total_steps + 1):
              state = train_step(state, next(batches))
              if preemption.reached(step):
                  checkpointer.save(step, state, ...)
                  checkpointer.wait()
                  raise preemption.stopped(f"after step {step} of {total_steps}")
    """

    def __init__(self, first_step: int = 0) -> None:
        """Prepares a loop.

        Args:
          first_step: updates done before the loop.
        """
        self._first_step = first_step
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        if jax.distributed.is_initialized():
            multihost_utils.reached_preemption_sync_point(self._first_step)  # else the service would count from 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None for a handler that native code has set
        self._previous.clear()

    @property
    def received(self) -> signal.Signals | None:
        """The signal that this process has received."""
        return self._signal

    @property
    def pending(self) -> bool:
        """Whether this process has received a signal."""
        return self._signal is not None

    def reached(self, step: int) -> bool:
        """Whether to save after this step and stop.

        Every process must call this after every step, with the same step. Does not wait for a device.

        Args:
          step: updates done.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self.pending

    def stopped(self, where: str) -> Stopped:
        """The exception that ends the loop; `where` is the place, such as "after step 20 of 600"."""
        return Stopped(self._signal or _signal_elsewhere(), where, together=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal is not None:
            return
        self._signal = signal.Signals(number)
        # Not by a logger: the signal may have come while it writes.
        os.write(2, f"{self._signal.name}: the run saves a checkpoint after this step and stops\n".encode())
        if self._previous[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # no command handles a second one
        if jax.distributed.is_initialized():
            _give_notice(self._signal)


def _give_notice(number: signal.Signals) -> None:
    client: Any = global_state.client
    now = datetime.datetime.now(datetime.UTC).isoformat()
    for key, value in ((_SIGNAL, number.name), (_NOTICE, now)):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
            client.key_value_set(key, value)


def _signal_elsewhere() -> signal.Signals:
    """The signal that another process has received; SIGTERM if it was none of a command."""
    client: Any = global_state.client
    if client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return signal.Signals[client.key_value_try_get(_SIGNAL)]
    return signal.SIGTERM
