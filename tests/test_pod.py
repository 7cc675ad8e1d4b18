"""Four processes on object storage, killed, stopped and continued, do what one does on disk."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.files import as_path
from semiovs_jax.checkpoints.checkpointer import read_evaluated
from semiovs_jax.reporting.metrics_log import read_records
from semiovs_jax.runtime.processes import LOST
from tests.experiment import shrunk_demo
from tests.free_port import free_port

ROOT = Path(__file__).parents[1]
PROCESSES, STEPS = 4, 16
CHANGES = {
    "batch_size": 4,
    "data.num_threads": 1,
    "data.prefetch": 1,
    "eval.batch_size": 4,
    "train.steps": STEPS,
    "train.eval_every_steps": 8,
    "train.checkpoint_every_steps": 4,
}


class Pod:
    """One command in several processes; `reach` waits for a line of the first."""

    def __init__(self, module: str, flags: Sequence[str], count: int = PROCESSES, devices: int = 1):
        address = f"--coordinator_address=localhost:{free_port()}"
        xla = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        environment = os.environ | {"XLA_FLAGS": xla, "JAX_ENABLE_X64": "1"}
        self.output: list[list[str]] = []
        self.processes = []
        for index in range(count):
            joined = ["--distributed", address, f"--process_index={index}", f"--process_count={count}"] * (count > 1)
            process = subprocess.Popen(
                [sys.executable, "-m", module, *flags, *joined],
                cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            lines: list[str] = []
            threading.Thread(target=self._read, args=(process, lines), daemon=True).start()
            self.processes.append(process)
            self.output.append(lines)

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stdout is not None
        lines.extend(iter(process.stdout.readline, ""))

    def reach(self, pattern: str) -> None:
        """Waits until the first process prints a line with the pattern."""
        deadline = time.monotonic() + 600
        while not any(re.search(pattern, line) for line in self.output[0]):
            assert self.processes[0].poll() is None, "".join(self.output[0])
            assert time.monotonic() < deadline, "".join(self.output[0])
            time.sleep(0.05)

    def statuses(self) -> list[int]:
        """Waits for all processes."""
        try:
            return [process.wait(timeout=600) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def finish(self) -> str:
        """Waits for all processes, which must succeed; what the first printed."""
        assert self.statuses() == [0] * len(self.processes), "".join(map("".join, self.output))
        return "".join(self.output[0])


def _flags(changes: dict[str, object]) -> list[str]:
    return ["--config=configs/demo.py", *(f"--config.{key}={value}" for key, value in changes.items())]


@pytest.mark.slow
@pytest.mark.long
def test_four_processes_on_a_bucket_do_what_one_does_on_disk(google: str, tmp_path: Path):
    config = shrunk_demo(tmp_path)
    bucket = as_path(f"{google}/pod", "--workdir")
    (bucket / "clip.safetensors").write_bytes((tmp_path / "clip.safetensors").read_bytes())
    data = {key: config.data[key] for key in ("root", "ood_root", "crop_size")}
    same = {f"data.{key}": value for key, value in data.items()} | CHANGES
    same |= {"ovs.name": "maskclip", "ovs.image_size": 32, "ovs.batch_size": 4, "train.log_every_steps": 1}
    same |= {"eval.max_shapes": 1, "train.panel_images": 1}
    here = {"ovs.weights": f"{tmp_path}/clip.safetensors", "ovs.labels_dir": f"{tmp_path}/labels"}
    there = {"ovs.weights": f"{bucket}/clip.safetensors", "ovs.labels_dir": f"{bucket}/labels"}
    run, alone = bucket / "run", tmp_path / "alone"
    before = set(tmp_path.iterdir())

    assert "usable" in Pod("semiovs_jax.check_data", _flags(same | there), count=1).finish()
    train = [*_flags(same | there), f"--workdir={run}"]
    killed = Pod("semiovs_jax.main", train)
    killed.reach(f"step 6/{STEPS}")
    killed.processes[-1].kill()
    start = time.monotonic()
    assert killed.statuses() == [LOST] * (PROCESSES - 1) + [-signal.SIGKILL]
    seconds = time.monotonic() - start
    assert seconds < 30
    stopped = Pod("semiovs_jax.main", train)
    stopped.reach(f"step 9/{STEPS}")
    stopped.processes[1].terminate()
    assert stopped.statuses() == [128 + signal.SIGTERM] * PROCESSES
    Pod("semiovs_jax.main", train).finish()
    predict = ["--source=" + str(tmp_path / "shapes" / "ood" / "JPEGImages"), "--out=" + str(bucket / "predictions")]
    Pod("semiovs_jax.evaluate", [f"--workdir={run}", "--which=latest"]).finish()
    Pod("semiovs_jax.predict", [f"--workdir={run}", *predict], count=1).finish()
    assert set(tmp_path.iterdir()) == before, "nothing of the run is on the disk"

    Pod("semiovs_jax.main", [*_flags(same | here), f"--workdir={alone}"], count=1, devices=PROCESSES).finish()
    records = [read_records(folder / "metrics.jsonl") for folder in (run, alone)]
    losses = [[record["loss"] for record in found if record["event"] == "train"] for found in records]
    scores = [[record["miou"] for record in found if record["event"] == "eval"] for found in records]
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert scores[0] == scores[1]
    params = [read_evaluated(folder, "latest").state["params"] for folder in (run, alone)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *params)
    difference = np.max(np.abs(np.subtract(*losses)) / losses[1])
    print(f"after SIGKILL all ended within {seconds:.1f} s; losses of {STEPS} steps differ by {difference:.1e}")
    print(f"mIoU {scores[0]} in both")
