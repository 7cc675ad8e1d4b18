"""Goldens of whole models: SED by parts and from end to end; training iterations, in processes of their own."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.golden import Golden, assert_matches, golden_path


@pytest.mark.parametrize(
    "family",
    ["clip_convnext", "sed_decoder", "sed_fast", pytest.param("sed_full", marks=pytest.mark.slow)],
)
def test_sed_equals_the_reference(family: str):
    golden = Golden(golden_path(f"{family}_base"))
    outputs = importlib.import_module(f"tests.replays.{family}").replay(golden, double=False)
    assert_matches(golden, outputs)


@pytest.mark.parametrize("family", ["sed_decoder", "sed_fast"])
def test_sed_in_chunks_of_classes_equals_the_reference(family: str):
    golden = Golden(golden_path(f"{family}_base"))
    outputs = importlib.import_module(f"tests.replays.{family}").replay(golden, double=False, class_chunk=3)
    assert_matches(golden, outputs)


# PrevMatch's iterations hold all of UniMatch's terms, so float64, the strict check, runs on them. SemiVL's are chaotic
# in float32: rounding grows to a hundredth of a logit within three of them; all three take minutes in float64, which
# `python -m tests.replay` is for.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "double", "iterations"),
    [
        pytest.param("semiovs_unimatch_step", False, 0, marks=pytest.mark.long),
        ("semiovs_prevmatch_step", True, 0),
        ("semiovs_semivl_step", True, 1),
    ],
)
def test_training_iterations_equal_the_reference(family: str, double: bool, iterations: int, tmp_path: Path):
    path = golden_path(family)
    out = tmp_path / "out.npz"
    command = [sys.executable, "-m", "tests.replay", str(path), str(out), *(["--f64"] if double else [])]
    command += [f"--iterations={iterations}"] if iterations else []
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], env=environment)
    assert_matches(Golden(path), np.load(out), double, iterations=iterations)


def test_only_what_must_not_be_shipped_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tests.golden._SHARED", tmp_path)
    with pytest.raises(pytest.skip.Exception, match="not shipped"):
        golden_path("maskclip_labels")
    with pytest.raises(FileNotFoundError, match="sed_ful_base"):
        golden_path("sed_ful_base")


def test_an_unknown_golden_is_refused(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.replay", str(tmp_path / "sed_v2.npz"), str(tmp_path / "out.npz")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode != 0
    assert "no replay for this golden" in done.stderr


def test_a_replay_is_compared_with_its_golden(tmp_path: Path):
    path, changed = golden_path("clip_text_base"), tmp_path / "clip_text_changed.npz"
    arrays = dict(np.load(path))
    key = next(key for key in Golden(path).keys if arrays[key].dtype.kind == "f" and not key.startswith("block_"))
    arrays[key] = arrays[key] * 1.001
    np.savez(changed, **arrays)
    ends = {}
    for golden in (path, changed):
        command = [sys.executable, "-m", "tests.replay", str(golden), str(tmp_path / "out.npz"), "--compare"]
        ends[golden] = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    first, *lines, last = ends[path].stdout.splitlines()
    assert (ends[path].returncode, ends[changed].returncode) == (0, 1), ends[path].stderr
    assert first.startswith("clip_text: wrote ")
    assert all(line.startswith("within  ") and "(<= " in line for line in lines)
    assert last == f"{len(lines)} of {len(lines)} arrays are within the published tolerance"
    worst = ends[changed].stdout.splitlines()[1]
    assert worst.startswith(f"BEYOND  {key}: max error ")
    assert f"{len(lines) - 1} of {len(lines)} arrays are within" in ends[changed].stdout
