"""What an iterator over batches costs: seconds by the clock, and seconds of cores, worker processes included."""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Usage:
    """What some batches took.

    Attributes:
        batches: How many there were.
        seconds: By the clock.
        core_seconds: Of this process and its workers. On a machine that others use, too, this is the figure to trust.
    """

    batches: int
    seconds: float
    core_seconds: float

    @property
    def per_second(self) -> float:
        """Batches a second."""
        return self.batches / self.seconds

    @property
    def per_core_second(self) -> float:
        """Batches that one core makes in a second."""
        return self.batches / self.core_seconds


def core_seconds() -> float:
    """Processor time so far of this process, its finished children and the workers that `multiprocessing` runs."""
    workers = sum(_worker_seconds(child.pid) for child in multiprocessing.active_children())
    finished = os.times()
    return time.process_time() + workers + finished.children_user + finished.children_system


def consume(iterator: Iterator[Any], batches: int, warm_up: int = 2) -> Usage:
    """Takes batches as fast as they come, after some that are not counted and start all workers."""
    for _ in range(warm_up):
        next(iterator)
    start, cores = time.perf_counter(), core_seconds()
    for _ in range(batches):
        next(iterator)
    return Usage(batches, time.perf_counter() - start, core_seconds() - cores)


def starvation(iterator: Iterator[Any], batches: int, step_seconds: float, warm_up: int = 2) -> float:
    """Share of the wall time for which a device that takes `step_seconds` a batch waits for data.

    The device is another one than the processor: while it works, all cores are free for the loader.
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
    """Processor time of a running child, from Linux's /proc; 0 elsewhere, and once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
