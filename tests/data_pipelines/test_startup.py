"""Ctrl-C before a command handles signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.startup import end_on_interrupt

ROOT = Path(__file__).parents[2]


@pytest.fixture
def default_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("argv", "ends"), [(["-m"], True), (["prepare.py"], False), ([], False)])
def test_only_a_command_that_is_being_imported_ends_on_interrupt(default_handler, monkeypatch, argv, ends):
    monkeypatch.setattr(sys, "argv", argv)
    end_on_interrupt()
    assert (signal.getsignal(signal.SIGINT) is signal.SIG_DFL) == ends


def test_an_ignored_interrupt_stays_ignored(default_handler, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("command", ["data_pipelines.prepare", "semiovs_jax.main", "semiovs_jax train"])
def test_an_interrupt_between_the_imports_prints_nothing(command, tmp_path):
    # A module of the same name as one that the command imports, which interrupts the process.
    (tmp_path / "absl.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    (tmp_path / "tensorflow_datasets.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which jobs in the background ignore
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
