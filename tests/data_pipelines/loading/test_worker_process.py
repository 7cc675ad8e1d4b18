"""Worker processes under signals to their group, and after the death of the process that started them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAINING = """
import signal, sys, time
import grain
import numpy as np
from data_pipelines.loading.batches import BatchIterator
from data_pipelines.loading.worker_log import BadRecords, HeldRecords


class Records:
    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        return np.full((256, 256), index)


if __name__ == "__main__":
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    batches = grain.MapDataset.source(Records()).batch(2)
    iterator = BatchIterator(
        batches, num_workers=2, num_threads=1, prefetch=8, stall_seconds=60.0, bad=BadRecords(0), held=HeldRecords()
    )
    next(iterator), next(iterator)
    print("ready", flush=True)
    while len(received) < 2:
        time.sleep(0.01)
    for _ in range(20):  # more than there were ahead
        next(iterator)
    print("read", flush=True)
    time.sleep(60)
"""


def group_of(process: subprocess.Popen) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,pid="], check=True, capture_output=True, text=True).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [pid for group, pid in pairs if int(group) == process.pid]


def segments_of(processes: list[str]) -> set[Path]:
    """The shared memory of processes."""
    maps = "".join(Path(f"/proc/{process}/maps").read_text() for process in processes)
    return {Path(name) for name in re.findall(r"/dev/shm/psm_\w+", maps)}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for shared memory where Linux has it: /proc and /dev/shm")
def test_workers_outlive_signals_but_not_the_process_that_started_them(tmp_path: Path):
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal and a scheduler send them
                os.killpg(process.pid, number)
            assert process.stdout.readline() == "read\n"
            assert len(group := group_of(process)) == 4  # this one, two workers, and Python's resource tracker
            assert (shared := segments_of(group))
        finally:
            process.kill()
            process.wait()
        deadline = time.monotonic() + 20
        while group_of(process) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not group_of(process)
        assert not [path for path in shared if path.exists()]
