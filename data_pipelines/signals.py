"""SIGINT and SIGTERM: the first one ends a command in order, a second one at once."""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ONE_SIGNAL_SECONDS = 1.0  # GNU timeout sends its signal twice: to the process, and to its group
_NATIVE_SECONDS = 5.0
_REPEAT_SECONDS = 0.05

Leave = Callable[[signal.Signals], None]


class Stopped(SystemExit):
    """A signal has stopped the command. The exit status is 128 + the signal's number.

    Attributes:
        signal: SIGINT or SIGTERM.
        where: How far the command came, such as "after step 20 of 600"; "" if that is not known.
        together: Whether all processes of a run stop at this place.
    """

    def __init__(self, number: int, where: str = "", *, together: bool = False):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.where = where
        self.together = together


@contextlib.contextmanager
def stop_on_signals(leave: Leave) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into `Stopped`, raised in the main thread.

    Code that must reach a certain place before it stops may set Python handlers of its own meanwhile. Python runs
    handlers between its own instructions alone: if native code, such as a compiler, delays `Stopped` by five seconds,
    another thread calls `leave`. While a module is imported, the first signal calls `leave`, too: native modules abort
    the process when they are interrupted. A second signal calls `leave` in any case; signals within one second count as
    one. Outside the main thread, the signals keep their handlers.

    Args:
        leave: Ends the process at once; called with the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop(leave)
    # The interpreter writes the number of each signal to this socket at once, also during native code.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=stop.watch, args=(reader,), name="signals", daemon=True).start()
    hook, sys.unraisablehook = sys.unraisablehook, stop.on_unraisable
    before = {number: signal.signal(number, stop.on_signal) for number in STOP_SIGNALS}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None for a handler that native code has set
        sys.unraisablehook = hook
        writer.close()


class _Stop:
    """The state of `stop_on_signals`."""

    def __init__(self, leave: Leave):
        self._leave = leave
        self._raised = threading.Event()
        self._repeats = threading.Event()
        self._hook = sys.unraisablehook
        self._main = threading.get_ident()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Raises `Stopped` for the first signal."""
        if not self._raised.is_set() and _is_importing(frame):
            self._leave(signal.Signals(number))
        if not self._raised.is_set():
            self._raised.set()
            raise Stopped(number)

    def on_unraisable(self, unraisable: Any) -> None:
        """Repeats a signal whose `Stopped` is lost: raised in a destructor or a callback of the garbage collector."""
        if isinstance(unraisable.exc_value, Stopped):
            threading.Timer(_REPEAT_SECONDS, self._repeat, [unraisable.exc_value.signal]).start()
        else:
            self._hook(unraisable)

    def watch(self, reader: socket.socket) -> None:
        """Calls `leave` for a second signal, and for a first one that native code delays for too long."""
        first, since, wait = 0, 0.0, None
        with reader:
            while True:
                reader.settimeout(wait)
                try:
                    numbers = reader.recv(64)
                except TimeoutError:
                    if self._is_delayed(first):
                        self._leave(signal.Signals(first))
                    wait = None
                    continue
                if not numbers:  # the writer is closed
                    return
                for number in set(STOP_SIGNALS).intersection(numbers):
                    if not first:
                        first, since = number, time.monotonic()
                        wait = _NATIVE_SECONDS if self._is_delayed(first) else None
                    elif self._repeats.is_set():
                        self._repeats.clear()
                    elif time.monotonic() - since > _ONE_SIGNAL_SECONDS:
                        self._leave(signal.Signals(number))

    def _is_delayed(self, number: int) -> bool:
        return signal.getsignal(number) == self.on_signal and not self._raised.is_set()

    def _repeat(self, number: signal.Signals) -> None:
        self._repeats.set()
        self._raised.clear()
        signal.pthread_kill(self._main, number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def kill_workers() -> None:
    """Kills the worker processes of this process, also those that have just been started."""
    for worker in multiprocessing.active_children():
        worker.kill()


def leave_at_once(number: signal.Signals) -> NoReturn:
    """Ends this process and its workers from any thread, without cleaning up."""
    kill_workers()
    if number == signal.SIGINT:
        # A shell ends its loop only if the command died of SIGINT. `signal.signal` works in the main thread alone.
        ctypes.CDLL(None).signal(int(number), int(signal.SIG_DFL))
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def end_process(number: signal.Signals) -> NoReturn:
    """Calls the functions of `atexit`, then ends this process with the status of the signal.

    The interpreter is not torn down: native libraries whose threads still run can crash then. A second signal ends the
    process at once.
    """
    for other in STOP_SIGNALS:
        signal.signal(other, signal.SIG_DFL)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    leave_at_once(number)
