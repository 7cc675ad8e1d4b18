import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.campaign import invariants
from tests.campaign.__main__ import fault_of
from tests.campaign.faults import FAULTS, damage
from tests.campaign.processes import PROJECT, Outcome
from tests.campaign.table import format_table
from tests.campaign.tasks import TASKS


@pytest.mark.slow
def test_six_faults_break_no_invariant(tmp_path):
    flags = ["--tasks=label,prepare", "--trials=6", "--jobs=2", f"--resume={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "tests.campaign", *flags], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().split("\n") if line]
    assert sorted(result["number"] for result in results) == list(range(6))


def test_each_fault_comes_once_before_one_comes_again():
    turn = [fault_of(FAULTS, 5, number) for number in range(len(FAULTS))]
    assert set(turn) == set(FAULTS)
    assert turn == [fault_of(FAULTS, 5, number) for number in range(len(FAULTS))]
    assert turn != [fault_of(FAULTS, 6, number) for number in range(len(FAULTS))]
    assert all(fault.task in TASKS for fault in FAULTS)


@pytest.mark.parametrize("way", ["flip", "truncation", "empty", "missing", "zeros"])
def test_damage_always_changes_a_file_in_the_same_way(way):
    content = bytes(range(1, 200))
    found = [damage(content, way, SimpleNamespace(random=random.Random(7), notes=[])) for _ in range(2)]
    assert found[0] == found[1] != content
    assert found[0] is None if way == "missing" else len(found[0]) <= len(content)


def test_differences_are_found():
    state = {"leaves": "abc", "metrics": [{"step": 1, "loss": 0.5}], "labels": {"a": ["x", "y"]}}
    other = {"leaves": "abd", "metrics": [{"step": 1, "loss": 0.5000001}], "labels": {"a": ["x", "y"]}}
    assert invariants.differences(state, json.loads(json.dumps(state))) == []
    assert invariants.differences(state, other) == ["leaves: abc != abd", "metrics[0] loss: 0.5 != 0.5000001"]
    assert invariants.differences(state, other, rounding=True) == []
    assert invariants.differences(state, {**state, "metrics": []})
    assert invariants.differences(state, {key: state[key] for key in ("leaves", "metrics")}) == [
        "labels: {'a': ['x', 'y']} != None"
    ]


def test_tracebacks_and_restored_steps_are_found_in_what_is_printed():
    quiet = Outcome((0,), "checkpoint  continues after step 1,012\n", "", False)
    assert invariants.traceback_of(quiet) is None
    assert invariants.restored_step(quiet) == 1012
    noisy = Outcome((1,), "checkpoint  none: a fresh start", "x\nTraceback (most recent call last):\n  File", False)
    assert invariants.traceback_of(noisy).startswith("Traceback")
    assert invariants.restored_step(noisy) == 0
    assert not noisy.refused
    assert Outcome((2, 2), "", "error: no such file", False).refused


def test_a_record_that_a_run_could_not_read_is_counted(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text('{"bad_records": ["JPEGImages/train_000003"]}')
    assert invariants.counted_as_bad(tmp_path, Path("data/SegmentationClass/train_000003.png"))
    assert not invariants.counted_as_bad(tmp_path, Path("data/SegmentationClass/train_000001.png"))


@pytest.mark.parametrize("name", ["a.png.0123456789abcdef0123456789abcdef.part", "12.orbax-checkpoint-tmp", "x.tmp"])
def test_temporary_files_are_found(name, tmp_path):
    (tmp_path / "labels.json").touch()
    assert invariants.left_behind("no process", tmp_path, TASKS["supervised"]) == []
    (tmp_path / name).touch()
    assert invariants.left_behind("no process", tmp_path, TASKS["supervised"]) == [name]


def test_the_table_counts_verdicts_and_failures():
    results = [
        {"row": "SIGKILL, step", "verdict": "equal", "failures": {}},
        {"row": "SIGKILL, step", "verdict": "equal", "failures": {"differs": "loss"}},
        {"row": "damaged", "verdict": "refused", "failures": {}},
    ]
    lines = format_table(results, invariants.INVARIANTS).splitlines()
    heads, kill, damaged, total = (lines[index] for index in (0, 2, 3, -1))
    assert heads.split("  ")[0] == "fault"
    assert kill.split() == ["SIGKILL,", "step", "2", "1", "1"]
    assert damaged.split() == ["damaged", "1", "1"]
    assert total.split() == ["all", "3", "1", "1", "0", "0", "0", "0", "1", "0", "0", "0"]
