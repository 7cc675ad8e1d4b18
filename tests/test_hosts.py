"""Two processes do what one does: the same numbers, each image read by one of them, all stopped after the same step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from semiovs_jax.checkpoints.checkpointer import read_evaluated
from semiovs_jax.reporting.metrics_log import read_records
from tests import hosts
from tests.experiment import shrunk_demo
from tests.free_port import free_port

ROOT = Path(__file__).parents[1]
PROCESSES, STEPS = 2, 8
CHANGES = {
    "method.name": "supervised",
    "method.ood": "none",
    "batch_size": 4,
    "data.num_threads": 1,
    "data.prefetch": 1,
    "eval.batch_size": 4,
    "ovs.batch_size": 2,
    "train.steps": STEPS,
    "train.eval_every_steps": STEPS,
    "train.checkpoint_every_steps": 4,
    "train.panel_images": 0,
    "train.writers": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    shrunk_demo(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    """What happened in each of two processes with one device each, and in one alone with two, in FOLDER/alone."""
    address = f"localhost:{free_port()}"
    alone = folder / "alone"
    shrunk_demo(alone)
    started = {folder / f"{index}.json": _start(address, index, PROCESSES, folder, 1) for index in range(PROCESSES)}
    started[alone / "0.json"] = _start("", 0, 1, alone, PROCESSES, "train")
    try:
        for result, process in started.items():
            assert process.wait(timeout=600) == 0, result.with_suffix(".txt").read_text()
    finally:
        for process in started.values():
            process.kill()
    return [json.loads(result.read_text()) for result in started]


def _start(address: str, index: int, count: int, folder: Path, devices: int, *stages: str) -> subprocess.Popen[bytes]:
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    arguments = [address, str(index), str(count), str(folder), json.dumps(CHANGES), *stages]
    with (folder / f"{index}.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.hosts", *arguments],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"},
            stdout=output,
            stderr=output,
        )


@pytest.fixture(scope="module")
def found(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return results[:PROCESSES]


@pytest.fixture(scope="module")
def alone(results: list[dict[str, Any]]) -> dict[str, Any]:
    return results[PROCESSES]


def _files(found: list[dict[str, Any]], stage: str, purpose: str) -> list[dict[str, int]]:
    return [own[stage]["opened"].get(purpose, {}) for own in found]


def _losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_records(run / "metrics.jsonl") if record["event"] == "train"]


def _parameters(run: Path) -> Any:
    return read_evaluated(run, "latest").state["params"]


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(found: list[dict[str, Any]], alone: dict[str, Any], folder: Path):
    reference = folder / "alone" / "whole"
    np.testing.assert_allclose(_losses(folder / "whole"), _losses(reference), rtol=1e-9)
    assert len(_losses(reference)) == STEPS
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)  # noqa: E731
    jax.tree.map(close, _parameters(folder / "whole"), _parameters(reference))


@pytest.mark.slow
def test_every_process_has_the_scores_of_all_images(found: list[dict[str, Any]], alone: dict[str, Any], folder: Path):
    assert found[0]["by_image"] == found[1]["by_image"]
    assert np.sum(found[0]["by_image"]["label_pixels"], axis=1).min() > 0
    assert found[0]["by_image"]["label_pixels"] == alone["by_image"]["label_pixels"]
    assert found[0]["evaluated"]["miou"] == found[1]["evaluated"]["miou"]
    (last,) = [
        r for r in read_records(folder / "whole" / "metrics.jsonl") if r["event"] == "eval" and r["step"] == STEPS
    ]
    assert found[0]["evaluated"]["miou"] == last["miou"]


@pytest.mark.slow
def test_each_image_is_decoded_by_one_process(found: list[dict[str, Any]]):
    for stage, purpose in (("labels", "labeling"), ("whole", "evaluation"), ("evaluated", "evaluation")):
        first, second = _files(found, stage, purpose)
        assert first
        assert len(first) == len(second)
        assert not first.keys() & second.keys()
    # Every epoch deals out the training images anew: a process reads images and labels of its rows, and a batch ahead.
    rows = CHANGES["batch_size"] // PROCESSES
    for files in _files(found, "whole", "training"):
        assert 2 * rows * STEPS <= sum(files.values()) <= 2 * rows * (STEPS + 2)
    assert [own["labels"]["labeled"] for own in found] == [4, 4]
    assert all(own["labels"]["finished"] for own in found)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_after_the_same_step_and_they_continue_bit_for_bit(
    found: list[dict[str, Any]], folder: Path
):
    assert found[0]["stopped"] == found[1]["stopped"]
    where, status, together = found[0]["stopped"]
    assert where in {f"after step {step} of {STEPS}" for step in range(hosts.STOP_STEP, STEPS)}
    assert (status, together) == (143, True)
    jax.tree.map(np.testing.assert_array_equal, _parameters(folder / "stopped"), _parameters(folder / "whole"))
    assert _losses(folder / "stopped") == _losses(folder / "whole")
