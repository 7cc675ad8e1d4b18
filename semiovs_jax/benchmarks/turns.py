"""Processes that take turns, so that programs are compared on one machine in one run.

Each program has a process of its own: its memory is its own, and it does not share threads or imports with the others.
All processes live through all rounds, and only one computes at a time.

The parent sends a call as a line of JSON and waits for the line with its result, so arguments and results are plain
data. Larger arrays are passed as files.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Threads of OpenMP that wait for work sleep. By default they spin, which takes cores from the process whose turn it is.
_WAITING = {"OMP_WAIT_POLICY": "passive"}
_SECONDS_TO_LEAVE = 10  # after its input has ended, before a worker is killed


class WorkerError(RuntimeError):
    """A call raised in the worker's process, or this process has ended; the message has the traceback."""


class Worker:
    """A process that runs a module, which calls `serve`.

    Used as a context manager; the process ends with the context.

    Args:
      module: name of the module.
      arguments: its command line.
      environment: variables beside those of this process.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None):
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_WAITING, **os.environ, **(environment or {})},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, name: str, /, **arguments: Any) -> Any:
        """Calls a method of the worker's target and waits for its result.

        Args:
          name: the method.
          **arguments: its keyword arguments, plain data.

        Raises:
          WorkerError: the method has raised, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"name": name, "arguments": arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self._module} ended with status {self._process.wait()} before or in {name!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self._module}, {name!r}:\n{answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """Ends the process; it may finish its exit handlers."""
        try:
            self._process.communicate(timeout=_SECONDS_TO_LEAVE)  # closes its input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def serve(make_target: Callable[[], Any]) -> None:
    """In a worker's process: answers the parent's calls until it closes the pipe.

    What is printed to the standard output goes to the standard error, so that libraries cannot break the answers.

    Args:
      make_target: makes the object whose methods are called.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        target = make_target()
        for line in sys.stdin:
            call = json.loads(line)
            try:
                answer = {"result": getattr(target, call["name"])(**call["arguments"])}
            except Exception:  # of any kind; the parent decides what to do
                answer = {"error": traceback.format_exc()}
            print(json.dumps(answer), file=answers, flush=True)


def take_turns(workers: Mapping[str, Worker], rounds: int, name: str, /, **arguments: Any) -> dict[str, list[Any]]:
    """Calls the same method of every worker once a round; the order of the workers alternates.

    Args:
      workers: by name.
      rounds: number of rounds.
      name: the method.
      **arguments: its keyword arguments.

    Returns:
      The results of each worker, one for each round.

    Raises:
      WorkerError: as `Worker.call`.
    """
    results: dict[str, list[Any]] = {side: [] for side in workers}
    for number in range(rounds):
        for side in reversed(list(workers)) if number % 2 else workers:
            results[side].append(workers[side].call(name, **arguments))
    return results
