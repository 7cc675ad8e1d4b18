"""Measures the cost of an iterator over batches: wall time, and processor time including worker processes."""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Usage:
    """The cost of a number of batches.

    Attributes:
        batches: Number of batches.
        seconds: Wall time.
        core_seconds: Processor time of this process and its workers. It is valid on a shared machine, too.
    """

    batches: int
    seconds: float
    core_seconds: float

    @property
    def per_second(self) -> float:
        """Batches per second of wall time."""
        return self.batches / self.seconds

    @property
    def per_core_second(self) -> float:
        """Batches per second of processor time."""
        return self.batches / self.core_seconds


def core_seconds() -> float:
    """Processor time so far of this process, its finished children and its running `multiprocessing` workers."""
    workers = sum(_worker_seconds(child.pid) for child in multiprocessing.active_children())
    finished = os.times()
    return time.process_time() + workers + finished.children_user + finished.children_system


def consume(iterator: Iterator[Any], batches: int, warm_up: int = 2) -> Usage:
    """Measures reading batches without pause. The first `warm_up` batches start all workers and are not counted."""
    for _ in range(warm_up):
        next(iterator)
    start, cores = time.perf_counter(), core_seconds()
    for _ in range(batches):
        next(iterator)
    return Usage(batches, time.perf_counter() - start, core_seconds() - cores)


def repeat(run: Callable[[], Any], seconds: float) -> Usage:
    """Measures calls of `run`, each of which computes a batch: one or more, for at least `seconds` of wall time."""
    start, cores = time.perf_counter(), core_seconds()
    batches = 0
    while not batches or time.perf_counter() - start < seconds:
        run()
        batches += 1
    return Usage(batches, time.perf_counter() - start, core_seconds() - cores)


def starvation(iterator: Iterator[Any], batches: int, step_seconds: float, warm_up: int = 2) -> float:
    """Share of the wall time that a device with steps of `step_seconds` spends waiting for data.

    The device is simulated by sleeping: during a step, all cores are free for the loader.
    """
    for _ in range(warm_up):
        next(iterator)
    waited, start = 0.0, time.perf_counter()
    for _ in range(batches):
        asked = time.perf_counter()
        next(iterator)
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    return waited / (time.perf_counter() - start)


def _worker_seconds(pid: int | None) -> float:
    """Processor time of a running child (Linux only); 0 on other systems and after the child has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
