"""Two processes of a run, of which one fails or is stopped."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime import processes

PROCESS = """
import sys, time
from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from semiovs_jax.runtime.processes import EndTogether, join_processes

index, port, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with command_end("labels are kept") as before_leaving:
    join_processes(f"localhost:{port}", index, 2)
    import jax, numpy
    from jax.experimental import multihost_utils
    from semiovs_jax.runtime.preemption import Preemption

    with EndTogether("labels are kept") as others:
        before_leaving.append(others.stop)
        multihost_utils.sync_global_devices("start")
        print("ready", flush=True)
        match case:
            case "fails":
                if index == 1:
                    raise InputError("a.png: is damaged")
                multihost_utils.sync_global_devices("of no other process")
            case "works without a loop":
                time.sleep(60)
            case "loops":
                with Preemption(100) as preemption:
                    for step in range(101, 100_000):
                        multihost_utils.process_allgather(numpy.ones(1))
                        time.sleep(0.02 + 0.05 * index)
                        if preemption.reached(step):
                            print("saved", step, flush=True)
                            raise preemption.stopped(f"after step {step}")
"""


def run_both(case: str, number: signal.Signals | None = None, receiver: int = 1) -> list[tuple[int, str, str]]:
    """Runs the case in two processes, of which one gets the signal; returns the status and output of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), port, case],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert "ready\n" in iter(process.stdout.readline, "")
        if number is not None:
            time.sleep(0.3)
            started[receiver].send_signal(number)
        outputs = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


def test_a_fault_in_one_process_ends_both():
    first, second = run_both("fails")
    assert first == (2, "", "process 1 failed: a.png: is damaged\n")
    assert second == (2, "", "error: a.png: is damaged\n")


def test_sigterm_without_a_loop_ends_both():
    first, second = run_both("works without a loop", signal.SIGTERM)
    assert first == (143, "", "process 1 was stopped by SIGTERM; labels are kept\n")
    assert second == (143, "", "stopped by SIGTERM; labels are kept\n")


def test_ctrl_c_in_one_process_ends_the_loops_of_both_after_the_same_step():
    first, second = run_both("loops", signal.SIGINT, receiver=0)
    assert first[0] == second[0] == -signal.SIGINT
    assert first[1] == second[1]
    step = second[1].removeprefix("saved ").strip()
    assert second[2] == f"stopped by SIGINT after step {step}; labels are kept\n"
    assert second[2] in first[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, 1, 2), r"--process_index=1 --process_count=2: give all three of --coordinator_address"),
        (("localhost", 0, 2), r"--coordinator_address=localhost: name a host and a free port"),
        (("localhost:1", 2, 2), r"--process_index=2 --process_count=2: use an index from 0 to 1"),
        ((None, None, None), r"--distributed: JAX cannot find the other processes \(no cluster\); start the"),
    ],
)
def test_processes_that_cannot_be_joined_are_refused(flags: tuple, message: str, monkeypatch: pytest.MonkeyPatch):
    def initialize(*arguments: object) -> None:
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=message):
        processes.join_processes(*flags)
