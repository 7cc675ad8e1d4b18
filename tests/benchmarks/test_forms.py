import os
import subprocess
import sys

import pytest

from semiovs_jax.benchmarks import forms


@pytest.mark.slow
def test_each_form_for_the_cpu_is_faster_than_the_plain_one():
    """By ratios, in a process whose compiler optimizes, as that of a run does."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "semiovs_jax.benchmarks.forms"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in done.stdout for name in forms.layers())


def test_a_form_that_is_no_faster_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    ratios = {"fast": [0.5, 0.1, 0.6], "slow": [0.8, 0.95, 1.2]}
    monkeypatch.setattr(forms, "layers", lambda: {name: name for name in ratios})
    monkeypatch.setattr(forms, "measure", ratios.get)
    with pytest.raises(SystemExit) as exit_:
        forms.main(["forms"])
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    assert "fast                 0.50 (0.10 to 0.60)" in printed.out
    assert printed.err == "not faster than the plain form: slow\n"
