"""Commands that end by a signal or a fault: their last line and their exit status."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from data_pipelines import command
from data_pipelines.errors import InputError

COMMAND = """
import hashlib, os, signal, sys, time
from data_pipelines import command, signals

signals._NATIVE_SECONDS, signals._ONE_SIGNAL_SECONDS = 0.3, 0.2
received = []
with command.command_end("3 parts are kept; the same command makes the others"):
    print("ready", flush=True)
    match sys.argv[1]:
        case "python":
            time.sleep(60)
        case "native":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        case "ends slowly":
            try:
                time.sleep(60)
            finally:
                time.sleep(60)
        case "destructor":
            class Kept:
                def __del__(self):
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.1)  # here, the signal is handled
            Kept()
            time.sleep(60)
        case "imports":
            import interrupted
        case "saves first":
            signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
            while not received:
                time.sleep(0.01)
            time.sleep(0.6)
            raise signals.Stopped(received[0], "after step 20 of 600")
"""


def run(case: str, *sent: signal.Signals, pause: float = 0.5) -> tuple[int, str]:
    """Sends the signals to a command, with pauses between them; returns its status and what it prints at its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, case], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for number in sent:
        time.sleep(pause)
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


KEPT = "; 3 parts are kept; the same command makes the others\n"


@pytest.mark.parametrize("case", ["python", "native"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line(case: str, number: signal.Signals, status: int):
    assert run(case, number) == (status, f"stopped by {number.name}{KEPT}")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_raises_nothing_in_a_module_that_is_imported(number, status, tmp_path, monkeypatch):
    # As native modules do, this one aborts where an exception is raised in it.
    (tmp_path / "interrupted.py").write_text("import os, time\ntry: time.sleep(60)\nexcept BaseException: os.abort()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert run("imports", number) == (status, f"stopped by {number.name}{KEPT}")


def test_a_signal_during_a_destructor_is_not_lost():
    assert run("destructor") == (143, f"stopped by SIGTERM{KEPT}")


def test_a_second_signal_ends_a_command_at_once():
    assert run("ends slowly", signal.SIGTERM, signal.SIGTERM) == (143, f"stopped by SIGTERM{KEPT}")
    assert run("ends slowly", signal.SIGTERM, signal.SIGINT) == (-signal.SIGINT, f"stopped by SIGINT{KEPT}")


def test_a_signal_that_comes_twice_at_a_time_counts_once():
    twice = signal.SIGTERM, signal.SIGTERM  # as GNU timeout sends it
    assert run("saves first", *twice, pause=0.05) == (143, f"stopped by SIGTERM after step 20 of 600{KEPT}")


def test_a_shell_ends_its_loop_at_ctrl_c():
    loop = f"for i in 1 2; do {shlex.join([sys.executable, '-c', COMMAND, 'python'])}; done"
    process = subprocess.Popen(
        ["bash", "-c", loop],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell cannot use signals that it inherits as ignored, as commands in the background do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("", f"stopped by SIGINT{KEPT}")


def test_faults_of_the_input_end_a_command_with_status_2(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit, match="2"), command.command_end():
        raise InputError("a.png: is missing", "b.png: is missing")
    assert capsys.readouterr().err == "error: a.png: is missing\nb.png: is missing\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
