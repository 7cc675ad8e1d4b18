"""The processes of one run, on one host or several: they start together and end together."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from types import TracebackType
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # the client of JAX's coordination service has no public name

from data_pipelines.command import End, end_of, print_end
from data_pipelines.errors import InputError
from data_pipelines.signals import Stopped, kill_workers

_FAILURES, _LEAVING, _FINISHED = "semiovs_jax/failures/", "semiovs_jax/leaving", "semiovs_jax/finished"  # keys
_LOOK_SECONDS = 1.0
_LEAVE_SECONDS = 10.0
_LEAVE_AT_ONCE_SECONDS = 2.0
_FINISH_SECONDS = 3600.0

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

    Raises:
      InputError: JAX does not recognize the launcher, or the values do not fit together.
    """
    given = {"coordinator_address": address, "process_index": index, "process_count": count}
    flags = " ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
    if flags and None in given.values():
        raise InputError(f"{flags}: give all three of {', '.join(f'--{name}' for name in given)}, or none of them")
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise InputError(f"--coordinator_address={address}: name a host and a free port, such as 10.0.0.1:1234")
    if index is not None and count is not None and not 0 <= index < count:
        raise InputError(f"--process_index={index} --process_count={count}: use an index from 0 to {count - 1}")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(address, count, index)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"--distributed: JAX cannot find the other processes ({error}); {_START}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # `Preemption` takes the place of JAX's own handler


class EndTogether:
    """Ends all processes of a run within seconds when one of them fails or is stopped.

    A process that waits for another one in a computation would wait for ever. So a process that ends early publishes
    its end at JAX's coordination service; a thread of each process looks for it there, prints it, and ends the process
    with the same status.
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
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not (isinstance(error, Stopped) and error.together):
            if "Gloo" in str(error):  # JAX's library for collectives on the CPU: it has lost a connection
                error = InputError(f"another process has ended before its time ({error}); start all of them again")
            self._publish(error)
            self._leave(end_of(error, self._kept))
        self._wait(_FINISHED, _FINISH_SECONDS)
        self._finished.set()
        self._thread.join()

    def stop(self, number: signal.Signals) -> None:
        """Publishes that a signal ends this process at once, and gives the others a moment to see it."""
        self._publish(Stopped(number))
        self._wait(_LEAVING, _LEAVE_AT_ONCE_SECONDS)

    def _publish(self, error: BaseException) -> None:
        end = end_of(error, self._kept)
        if isinstance(error, Stopped):
            what = f"was {end.message}"
        elif isinstance(error, InputError):
            what = f"failed: {error}"
        else:
            what = f"failed: {type(error).__name__}: {error}; its own output has the place"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the service is gone, or this key exists
            self._client.key_value_set(f"{_FAILURES}{self._index}", json.dumps([what, end.status]))

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
