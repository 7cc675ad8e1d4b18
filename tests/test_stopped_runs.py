"""The command `main` in processes of its own: stopped by signals, and with a fault in one of two processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semiovs_jax.reporting.metrics_log import read_records
from tests.experiment import shrunk_demo

ROOT = Path(__file__).parents[1]
LONG = 100_000

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


def start(config: Path, workdir: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "semiovs_jax.main", f"--config={config}", f"--workdir={workdir}", *flags],
        cwd=config.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(workdir: Path, process: subprocess.Popen, step: int) -> None:
    """Waits until a step is logged."""
    deadline = time.monotonic() + 200
    while not any(record["step"] >= step for record in read_records(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_with_workers_saves_its_last_step_at_ctrl_c_and_at_sigterm(config: Path, tmp_path: Path):
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)):
        first = max(saved_steps(tmp_path), default=0) if tmp_path.joinpath("checkpoints").exists() else 0
        process = start(config, tmp_path)
        wait_for_step(tmp_path, process, first + 1)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=200)
        assert process.returncode == status, err
        assert "Traceback" not in err
        stopped = re.search(rf"^stopped by {number.name} after step (\d+) of {LONG}; checkpoints", err, re.M)
        assert stopped, err
        assert int(stopped[1]) == max(saved_steps(tmp_path)) > first


@pytest.mark.slow
def test_a_fault_of_the_data_in_one_process_ends_both(config: Path, tmp_path: Path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--distributed", f"--coordinator_address=localhost:{port}", "--process_count=2"
    first = start(config, tmp_path, *flags, "--process_index=0")
    second = start(config, tmp_path, *flags, "--process_index=1", "--config.data.stall_seconds=0.0001")
    (_, seen), (_, own) = first.communicate(timeout=300), second.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (2, 2), seen + own
    assert "\nprocess 1 failed: no batch came for 0.0001 s" in seen
    assert "\nerror: no batch came for 0.0001 s" in own
    assert "Traceback" not in seen + own
