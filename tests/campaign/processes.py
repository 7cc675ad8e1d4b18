"""Starts a command as a user does, in processes that can be found again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.campaign.tasks import Task
from tests.free_port import free_port

PROJECT = Path(__file__).parents[2]
MARK = "SEMIOVS_CAMPAIGN_MARK"  # an environment variable that all processes of a trial inherit
SECONDS = 300  # until a command counts as hanging


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        codes: Exit status of each process as a shell shows it: 128 + N after signal N.
        out: What the processes wrote to standard output.
        err: What they wrote to standard error.
        hung: Whether it had to be killed.
    """

    codes: tuple[int, ...]
    out: str
    err: str
    hung: bool

    @property
    def finished(self) -> bool:
        return set(self.codes) == {0}

    @property
    def refused(self) -> bool:
        return set(self.codes) == {2} and "error: " in self.err


class Command:
    """A started command: one process, or several that JAX joins as those of a Slurm job."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        outputs: Path,
        environment: Mapping[str, str],
        *,
        flags: Sequence[str] = (),
        processes: int | None = None,
        preexec: object = None,
    ):
        """Starts the command.

        Args:
            task: The task.
            folder: Where it runs.
            outputs: A new folder for what it prints.
            environment: Added to this process's environment.
            flags: Further flags.
            processes: Instead of the task's number.
            preexec: Called in each process before the command.
        """
        self.started = time.monotonic()
        self._outputs = outputs
        outputs.mkdir(parents=True)
        count = processes or task.processes
        port = str(free_port())
        self.processes = []
        for index in range(count):
            cluster = _slurm(index, count, port) if task.processes > 1 else {}
            with (outputs / f"out-{index}").open("wb") as out, (outputs / f"err-{index}").open("wb") as err:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *task.command, *flags],
                        cwd=folder,
                        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment, **cluster},
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                        preexec_fn=preexec,
                    )
                )

    @property
    def running(self) -> bool:
        """Whether all processes run."""
        return all(process.poll() is None for process in self.processes)

    def send(self, number: signal.Signals, *, group: bool, index: int = 0) -> None:
        """Sends a signal to one process, or to its whole group as a terminal and Slurm do."""
        process = self.processes[index]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number) if group else process.send_signal(number)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Waits for all processes; kills those that take longer. One that is killed takes the others with it."""
        end, hung = time.monotonic() + seconds, False
        while any(process.poll() is None for process in self.processes):
            killed = any(process.poll() == -signal.SIGKILL for process in self.processes)
            if killed or time.monotonic() > end:  # launchers end all processes of a job after one was killed
                hung = hung or not killed
                for process in self.processes:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        codes = tuple(128 - code if code < 0 else code for code in (process.wait() for process in self.processes))
        return Outcome(codes, self._text("out"), self._text("err"), hung)

    def _text(self, kind: str) -> str:
        paths = sorted(self._outputs.glob(f"{kind}-*"))
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def marked(mark: str) -> Iterator[int]:
    """The living processes that inherited a mark."""
    entry = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and entry in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def end_marked(mark: str) -> None:
    """Kills the processes that inherited a mark."""
    for process in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _slurm(index: int, count: int, port: str) -> dict[str, str]:
    """What JAX reads of a Slurm job on this machine."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": port,
    }
