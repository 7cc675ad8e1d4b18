"""The processes of one run, on one host or several: they start together and end together."""

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the client of JAX's coordination service has no public name

from data_pipelines.command import End, end_of, print_end
from data_pipelines.errors import InputError
from data_pipelines.signals import Stopped, kill_workers

_FAILURES, _LEAVING, _FINISHED = "semiovs_jax/failures/", "semiovs_jax/leaving", "semiovs_jax/finished"  # keys
_JOIN_SECONDS = 300.0  # hosts of a cluster start minutes apart
_HEARTBEAT_SECONDS = 20.0  # a process that gives no sign for so long is lost
_LOOK_SECONDS = 1.0
_LEAVE_SECONDS = 10.0
_LEAVE_AT_ONCE_SECONDS = 2.0
_FINISH_SECONDS = 3600.0
_REACH_SECONDS = 2.0
_WAIT_SECONDS = 7 * 24 * 3600.0  # a process that is lost ends the wait

_waits = itertools.count()

# In the errors of a lost connection: JAX's library for collectives on the CPU, and the coordination service.
_SIGNS_OF_LOSS = ("Gloo", "CoordinationService")

# The exit status where another process is lost or does not come: EX_TEMPFAIL of sysexits.h, the same start may succeed.
LOST = 75

_START = (
    "start the command with Slurm, Open MPI or Kubernetes or on a TPU pod, or start it N times with "
    "--coordinator_address=HOST:PORT (of process 0), --process_index=0 to N-1 and --process_count=N"
)


def join_processes(address: str | None, index: int | None, count: int | None) -> None:
    """Joins the other processes of the run by JAX's runtime. SIGTERM keeps its Python handler.

    Args:
      address: "HOST:PORT" of process 0; None if the launcher gives it, then `index` and `count` are None, too.
      index: number of this process, from 0.
      count: number of processes.

    If the others do not come within five minutes, prints that and ends this process with the status `LOST`.

    Raises:
      InputError: JAX does not recognize the launcher, the values do not fit together, or the port is taken.
    """
    given = {"coordinator_address": address, "process_index": index, "process_count": count}
    flags = " ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
    if flags and None in given.values():
        raise InputError(f"{flags}: give all three of {', '.join(f'--{name}' for name in given)}, or none of them")
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise InputError(f"--coordinator_address={address}: name a host and a free port, such as 10.0.0.1:1234")
    if index is not None and count is not None and not 0 <= index < count:
        raise InputError(f"--process_index={index} --process_count={count}: use an index from 0 to {count - 1}")
    if address is not None and index == 0:
        _check_port(address)
    handler = signal.getsignal(signal.SIGTERM)
    _end_on_abort(_end_of_join)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=int(_JOIN_SECONDS),
            heartbeat_timeout_seconds=int(_HEARTBEAT_SECONDS),
        )
    except (ValueError, RuntimeError) as error:
        _end_on_abort(None)
        raise InputError(f"--distributed: JAX cannot find the other processes ({error}); {_START}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # `Preemption` takes the place of JAX's own handler


def _check_port(address: str) -> None:
    """Refuses a port where process 0 cannot listen: JAX 0.10 ends with a segmentation fault there."""
    port = int(address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        ).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--coordinator_address={address}: process 0 cannot listen there ({error}); choose a free port, for all "
            "processes"
        ) from error


def wait_for_processes(event: str) -> None:
    """Waits until all processes have called this for the same event, as long as it takes; one process goes on at once.

    Without a device: the first collective on the CPU fails where a process comes half a minute later than another.
    """
    if global_state.client is not None and global_state.num_processes > 1:
        number = next(_waits)  # the same on all processes, which wait for the same events
        global_state.client.wait_at_barrier(f"semiovs_jax/{number}/{event}", int(1000 * _WAIT_SECONDS))


class EndTogether:
    """Ends all processes of a run within seconds when one of them fails or is stopped.

    A process that waits for another one in a computation would wait for ever. So a process that ends early publishes
    its end at JAX's coordination service; a thread of each process looks for it there, prints it, and ends the process
    with the same status.

    A process that is killed, or whose host is lost, publishes nothing. JAX's coordination service misses its heartbeats
    and aborts the others; they end with a message and the status `LOST`.
    """

    def __init__(self, kept: str):
        """Opens the context in a process that has joined the others.

        Args:
          kept: what a stopped command leaves behind, see `command_end`.
        """
        self._kept = kept
        self._client: Any = global_state.client
        self._index = global_state.process_id
        self._finished = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="other-processes", daemon=True)

    def __enter__(self) -> "EndTogether":
        _end_on_abort(self._end_of_loss)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not (isinstance(error, Stopped) and error.together):
            if any(sign in str(error) for sign in _SIGNS_OF_LOSS):
                end = self._end_of_loss(late="imed out" in str(error))
                self._publish(f"reports that {end.message.removeprefix('error: ')}", end.status)
            else:
                end = end_of(error, self._kept)
                self._publish(_described(error, end), end.status)
            self._leave(end)
        self._wait(_FINISHED, _FINISH_SECONDS)
        self._finished.set()
        self._thread.join()
        _end_on_abort(None)

    def stop(self, number: signal.Signals) -> None:
        """Publishes that a signal ends this process at once, and gives the others a moment to see it."""
        stopped = Stopped(number)
        end = end_of(stopped, self._kept)
        self._publish(_described(stopped, end), end.status)
        self._wait(_LEAVING, _LEAVE_AT_ONCE_SECONDS)

    def _publish(self, what: str, status: int) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, or this key exists
            self._client.key_value_set(f"{_FAILURES}{self._index}", json.dumps([what, status]))

    def _end_of_loss(self, late: bool = False) -> End:
        who = "another process" if self._index == 0 or _reaches_process_0() else "process 0"
        what = f"{who} was killed, or its host or the network failed{', or it came too late' if late else ''}"
        return End(f"error: {what}; start all processes again: {self._kept}", LOST)

    def _watch(self) -> None:
        while not self._finished.wait(_LOOK_SECONDS):
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                for key, value in self._client.key_value_dir_get(_FAILURES):
                    index = key.removeprefix(_FAILURES)
                    if index != str(self._index):  # this process prints its own end
                        what, status = json.loads(value)
                        self._leave(End(f"process {index} {what}", status))

    def _leave(self, end: End) -> NoReturn:
        self._leaving.acquire()  # never released: one thread ends the process
        print_end(end)
        self._wait(_LEAVING, _LEAVE_SECONDS)
        if self._index == 0:
            time.sleep(0.5)  # JAX aborts the others with a report of its own if the service ends before them
        kill_workers()
        os._exit(end.status)

    def _wait(self, barrier: str, seconds: float) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a process does not come
            self._client.wait_at_barrier(barrier, int(1000 * seconds))


def _described(error: BaseException, end: End) -> str:
    """What happened to the process that raised `error`, for the others."""
    if isinstance(error, Stopped):
        return f"was {end.message}"
    if isinstance(error, InputError):
        return f"failed: {error}"
    return f"failed: {type(error).__name__}: {error}; its own output has the place"


def _end_of_join() -> End:
    address, count = global_state.coordinator_address, global_state.num_processes
    if global_state.process_id == 0 or _reaches_process_0():
        what = f"not all of the {count} processes have come to {address} within {_JOIN_SECONDS:g} s"
        return End(f"error: {what}; start each of them once, with its own --process_index", LOST)
    what = f"process 0 has not answered at {address} within {_JOIN_SECONDS:g} s"
    return End(f"error: {what}; start it, or correct the address, or open the port between the hosts", LOST)


def _reaches_process_0() -> bool:
    host, _, port = str(global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


_abort_handler: Any = None  # ctypes keeps no reference


def _end_on_abort(end: Callable[[], End] | None) -> None:
    """Ends this process with a message of `end` where native code calls `abort`; None restores the default.

    That is what JAX's coordination service does when a process does not come or is lost. The handler is called from C:
    a handler of `signal.signal` waits for Python's next instruction, which never comes.
    """
    global _abort_handler
    native = ctypes.CDLL(None).signal
    native.argtypes, native.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    if end is None:
        native(signal.SIGABRT, None)
        return

    def on_abort(number: int) -> None:
        del number
        try:
            os.write(2, f"{end().message}\n".encode())
            kill_workers()
        finally:
            os._exit(LOST)

    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    native(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))
