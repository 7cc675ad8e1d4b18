"""Whole goldens that need a process of their own: training iterations, and float64."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import Golden, assert_matches, golden_path


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True], ids=["f32", "f64"])
def test_training_iterations_equal_the_reference(double: bool, tmp_path: Path):
    path = golden_path("semiovs_unimatch_step")
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "tests.replay", str(path), str(out), *(["--f64"] if double else [])]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], env=environment)
    assert_matches(Golden(path), np.load(out), double)


def test_an_unknown_golden_is_refused(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.replay", str(tmp_path / "sed_v2.npz"), str(tmp_path / "out.npz")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode != 0
    assert "no replay for this golden" in done.stderr
