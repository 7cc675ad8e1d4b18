"""Two processes of a run, of which one fails or is stopped."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime import processes
from tests.free_port import free_port

ROOT = Path(__file__).parents[2]

PROCESS = """
import sys, time
from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from semiovs_jax.runtime import processes
from semiovs_jax.runtime.agreement import check_agreement
from semiovs_jax.runtime.processes import EndTogether, join_processes

index, port, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
processes._JOIN_SECONDS = 2 if case == "comes alone" else 300
processes._LEAVE_SECONDS = 2 if case == "waits for others" else 10
with command_end("labels are kept") as before_leaving:
    join_processes(f"localhost:{port}", index, 2)
    import jax, numpy
    from ml_collections import ConfigDict
    from jax.experimental import multihost_utils
    from semiovs_jax.runtime.preemption import Preemption

    with EndTogether("labels are kept") as others:
        before_leaving.append(others.stop)
        seed = index if case == "differs" else 0
        check_agreement(ConfigDict({"seed": seed, "data": {"num_threads": index}}))
        multihost_utils.sync_global_devices("start")
        print("ready", flush=True)
        match case:
            case "fails":
                if index == 1:
                    raise InputError("a.png: is damaged")
                multihost_utils.sync_global_devices("of no other process")
            case "works without a loop":
                time.sleep(60)
            case "waits for others":
                multihost_utils.process_allgather(numpy.ones(1))
                time.sleep(index)
                for _ in range(1000):
                    multihost_utils.process_allgather(numpy.ones(1))
                    time.sleep(0.1)
            case "loops":
                with Preemption(100) as preemption:
                    for step in range(101, 100_000):
                        multihost_utils.process_allgather(numpy.ones(1))
                        time.sleep(0.02 + 0.05 * index)
                        if preemption.reached(step):
                            print("saved", step, flush=True)
                            raise preemption.stopped(f"after step {step}")
"""


class End(NamedTuple):
    status: int
    out: str
    err: str


def run(case: str, number: signal.Signals | None = None, receiver: int = 1, *, meet: bool = True) -> list[End]:
    """Runs the case in two processes, of which one gets the signal once both have met; returns the ends.

    Args:
      case: of `PROCESS`.
      number: the signal; None for none.
      receiver: the process that gets it.
      meet: whether the processes can meet; if they come alone, each is told another port.
    """
    ports = [str(free_port()), str(free_port())]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), ports[index if case == "comes alone" else 0], case],
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
            assert "ready\n" in iter(process.stdout.readline, "") or not meet
        if number is not None:
            time.sleep(0.3)
            started[receiver].send_signal(number)
        outputs = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    return [End(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


def test_a_fault_in_one_process_ends_both():
    first, second = run("fails")
    assert first == (2, "", "process 1 failed: a.png: is damaged\n")
    assert second == (2, "", "error: a.png: is damaged\n")


def test_sigterm_without_a_loop_ends_both():
    first, second = run("works without a loop", signal.SIGTERM)
    assert first == (143, "", "process 1 was stopped by SIGTERM; labels are kept\n")
    assert second == (143, "", "stopped by SIGTERM; labels are kept\n")


def test_ctrl_c_in_one_process_ends_the_loops_of_both_after_the_same_step():
    first, second = run("loops", signal.SIGINT, receiver=0)
    assert first[0] == second[0] == -signal.SIGINT
    assert first[1] == second[1]
    step = second[1].removeprefix("saved ").strip()
    assert second[2] == f"stopped by SIGINT after step {step}; labels are kept\n"
    assert second[2] in first[2]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other_with_a_message(killed: int):
    ends = run("waits for others", signal.SIGKILL, killed)
    assert ends[killed].status == -signal.SIGKILL
    left = ends[1 - killed]
    assert left.status == processes.LOST
    who = "another process" if killed else "process 0"
    last = left.err.splitlines()[-1]
    assert (
        last
        == f"error: {who} was killed, or its host or the network failed; start all processes again: labels are kept"
    )


def test_processes_with_other_configs_are_refused_and_their_threads_may_differ():
    first, second = run("differs", meet=False)
    assert first.status == second.status == 2
    assert "the processes differ:\n  config.seed is 0 on process 0, 1 on process 1\n  start all processes" in first.err
    assert "num_threads" not in first.err
    assert "config.seed is 0 on process 0, 1 on process 1" in second.err


def test_a_process_that_comes_alone_does_not_wait_for_ever():
    first, second = run("comes alone", meet=False)
    assert first.status == second.status == processes.LOST
    expected = r"error: not all of the 2 processes have come to localhost:\d+ within 2 s; start each of them once"
    assert re.match(expected, first.err.splitlines()[-1])
    expected = r"error: process 0 has not answered at localhost:\d+ within 2 s; start it, or correct the address"
    assert re.match(expected, second.err.splitlines()[-1])


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        command = f"from semiovs_jax.runtime.processes import join_processes; join_processes({address!r}, 0, 2)"
        found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert f"InputError: --coordinator_address={address}: process 0 cannot listen there" in found.stderr


def test_a_command_of_one_process_joins_no_other():
    command = [sys.executable, "-m", "semiovs_jax.check_data", "--config=configs/demo.py", "--distributed"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: --distributed: no such flag; there are --config, ")


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
    def initialize(*arguments: object, **options: object) -> None:
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=message):
        processes.join_processes(*flags)
