"""The command `main` in processes of its own: stopped by signals, and with a fault in one of two processes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from semiovs_jax.reporting.metrics_log import read_records
from tests.compilation import FAST_COMPILATION
from tests.experiment import shrunk_demo
from tests.free_port import free_port

ROOT = Path(__file__).parents[1]
LONG = 100_000
PATIENCE = 600  # seconds, for a busy machine

CONFIG = """
from pathlib import Path
from tests.experiment import shrunk_demo

def get_config():
    return shrunk_demo(Path({folder!r}), **{changes!r})
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an experiment without end, which compiles in seconds."""
    folder = tmp_path_factory.mktemp("stopped")
    changes = {"method.name": "supervised", "method.ood": "none", "train.panel_images": 0, "data.num_workers": 2}
    changes |= {f"train.{key}": LONG for key in ("steps", "eval_every_steps", "checkpoint_every_steps")}
    shrunk_demo(folder)
    path = folder / "config.py"
    path.write_text(CONFIG.format(folder=str(folder), changes=changes))
    return path


class Run(NamedTuple):
    process: subprocess.Popen
    output: Path

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the status and the output."""
        return self.process.wait(timeout=PATIENCE), self.output.read_text()


@pytest.fixture
def start(config: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts the command in a process group of its own, which ends with the test."""
    runs = []

    def start_run(*flags: str) -> Run:
        output = tmp_path / f"output{len(runs)}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "semiovs_jax.main", f"--config={config}", f"--workdir={tmp_path}", *flags],
                env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILATION},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        runs.append(Run(process, output))
        return runs[-1]

    yield start_run
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


def wait_for_step(workdir: Path, run: Run, step: int) -> None:
    """Waits until a step is logged."""
    deadline = time.monotonic() + PATIENCE
    while not any(record["step"] >= step for record in read_records(workdir / "metrics.jsonl")):
        assert run.process.poll() is None, run.output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*"))


@pytest.mark.slow
def test_a_run_with_workers_saves_its_last_step_at_ctrl_c_and_at_sigterm(start: Callable[..., Run], tmp_path: Path):
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)):
        before = max(saved_steps(tmp_path), default=0)
        run = start()
        wait_for_step(tmp_path, run, before + 1)
        os.killpg(run.process.pid, number)
        found, output = run.end()
        assert found == status, output
        assert "Traceback" not in output
        stopped = re.search(rf"^stopped by {number.name} after step (\d+) of {LONG}; checkpoints", output, re.M)
        assert stopped, output
        assert int(stopped[1]) == max(saved_steps(tmp_path)) > before


@pytest.mark.slow
def test_a_fault_of_the_data_in_one_process_ends_both(start: Callable[..., Run]):
    flags = "--distributed", f"--coordinator_address=localhost:{free_port()}", "--process_count=2"
    first = start(*flags, "--process_index=0")
    second = start(*flags, "--process_index=1", "--config.data.stall_seconds=0.0001")
    (status, seen), (own_status, own) = first.end(), second.end()
    assert (status, own_status) == (2, 2), seen + own
    assert "\nprocess 1 failed: no batch came for 0.0001 s" in seen
    assert "\nerror: no batch came for 0.0001 s" in own
    assert "Traceback" not in seen + own
