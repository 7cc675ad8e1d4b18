"""Students that start from a trained one: what they take over, what is new, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.shapes.outlines import DISTRACTORS, TARGETS
from semiovs_jax.benchmarks.claims.rows import ROWS
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run, read_evaluated
from semiovs_jax.experiment import make_student
from semiovs_jax.exporting.formats.safetensors import write
from semiovs_jax.exporting.model import read_model
from semiovs_jax.fine_tuning import Trained, read_trained, take_over
from semiovs_jax.initial import initial_weights
from semiovs_jax.models import Functional
from semiovs_jax.runs.digests import run_digests
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.weights.keys import WeightMismatchError, flatten
from tests.checkpoints.toy import make_iterator
from tests.experiment import shrunk_demo
from tests.saved_run import made_up, save_run

SUPERVISED = {"method.name": "supervised", "method.ood": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fine_tuning")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return save_run(folder / "run", shrunk_demo(folder, **SUPERVISED))


@pytest.fixture(scope="module")
def farm(folder: Path) -> str:
    """A dataset of other classes than the benchmark's."""
    facts = {"name": "farm", "classes": ["field", "cow", "fence"], "ignore_index": 255, "background": 0}
    (folder / "farm.json").write_text(json.dumps(facts))
    return str(folder / "farm.json")


def _start(folder: Path, weights: Path, *, checked: bool = False, **changes: Any) -> dict[str, Any]:
    """The initial weights by path; if `checked`, as the checks before a run see them, with shapes for what is new."""
    changes = {**SUPERVISED, **changes, "model.random_init": False, "model.weights": str(weights)}
    config = shrunk_demo(folder, **changes)
    dataset = dataset_info(config.data.dataset)
    make = lambda: make_student(config, dataset)  # noqa: E731
    params, batch_stats = initial_weights(config, dataset, nnx.eval_shape(make) if checked else make())
    return flatten(params) | flatten(batch_stats)


def _saved(run: Path) -> dict[str, Any]:
    state = read_evaluated(run).state
    return flatten(state["params"]) | flatten(state["batch_stats"])


def _assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_a_checkpoint_and_an_exported_file_start_with_the_same_weights(folder: Path, run: Path):
    expected = _saved(run)
    _assert_same(_start(folder, run), expected)
    _assert_same(_start(folder, run / "checkpoints" / "2", checked=True), expected)
    write(folder / "exported", read_model(get_config(str(run)), str(run)))
    _assert_same(_start(folder, folder / "exported" / "model.safetensors", checked=True), expected)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_a_head_of_other_classes_is_new_and_named(folder: Path, run: Path, farm: str, log: pytest.LogCaptureFixture):
    found, expected = _start(folder, run, **{"data.dataset": farm}), _saved(run)
    heads = ["classifier/bias", "classifier/kernel"]
    assert [found[head].shape[-1] for head in heads] == [3, 3]
    _assert_same(*({path: tree[path] for path in expected if path not in heads} for tree in (found, expected)))
    assert f"fine-tuning {run} (step 2)" in log.text
    assert "new: classifier/bias, classifier/kernel (9 classes there, 3 here)" in log.text


def test_the_check_before_a_run_reads_all_and_logs_nothing(
    folder: Path, run: Path, farm: str, log: pytest.LogCaptureFixture
):
    _start(folder, run, checked=True, **{"data.dataset": farm})
    assert "new" not in log.text


def test_other_names_for_as_many_classes_are_a_warning(folder: Path, run: Path, log: pytest.LogCaptureFixture):
    facts = {"name": "renamed", "classes": [f"thing {i}" for i in range(9)], "ignore_index": 255}
    (folder / "renamed.json").write_text(json.dumps(facts))
    _start(folder, run, **{"data.dataset": str(folder / "renamed.json")})
    (record,) = [record for record in log.records if record.levelno == logging.WARNING and "head" in record.message]
    assert "background, circle" in record.message
    assert "thing 0, thing 1" in record.message


def test_of_a_method_that_evaluates_an_average_the_average_is_taken(folder: Path, tmp_path: Path):
    config = shrunk_demo(folder, **SUPERVISED)
    dataset = dataset_info("shapes")
    trees = Functional.create(nnx.eval_shape(lambda: make_student(config, dataset)))[1:]
    student, average = ({"params": made_up(trees[0], i), "batch_stats": made_up(trees[1], i)} for i in (0, 1))
    facts = {"backbone": "resnet_tiny", "classes": 9, "evaluates": "ema"}
    with Checkpointer(tmp_path) as checkpointer:
        state = {**student, "labelers": {"ema": average}}
        checkpointer.save(1, state, make_iterator(), describe_run(config, facts))
    _assert_same(_start(folder, tmp_path, checked=True), flatten(average["params"]) | flatten(average["batch_stats"]))


def test_a_student_on_clip_keeps_its_own_words(tmp_path: Path):
    changes = {**ROWS["SemiVL"].changes, "data.crop_size": 32}
    save_run(tmp_path / "run", shrunk_demo(tmp_path, **changes))
    found, expected = _start(tmp_path, tmp_path / "run", checked=True, **changes), _saved(tmp_path / "run")
    assert not np.array_equal(found.pop("text"), expected.pop("text"))
    _assert_same(found, expected)


def test_all_that_differs_otherwise_is_refused_at_once(folder: Path, run: Path):
    config = shrunk_demo(folder, **SUPERVISED)
    dataset = dataset_info("shapes")
    trees = Functional.create(nnx.eval_shape(lambda: make_student(config, dataset)))[1:]
    values = {path: np.asarray(value) for path, value in _saved(run).items()}
    del values["fuse/0/norm/mean"]
    values |= {"auxiliary/kernel": np.zeros(2), "low_level/norm/bias": np.zeros(17)}
    with pytest.raises(WeightMismatchError, match="run 7") as caught:
        take_over(Trained(values, "run 7"), *trees, dataset)
    for fault in ("auxiliary/kernel (2,)", "low_level/norm/bias has shape (17,), expected (16,)", "fuse/0/norm/mean"):
        assert fault in str(caught.value)


def test_another_student_is_named(folder: Path, run: Path):
    with pytest.raises(InputError, match=r"a student on resnet_tiny, but .*'resnet18'; set --config\.model\.backbone="):
        _start(folder, run, checked=True, **{"model.backbone": "resnet18"})


@pytest.mark.parametrize("name", ["nothing", "folder"])
def test_a_path_without_a_student_is_described_as_it_is(folder: Path, name: str):
    (folder / "folder").mkdir(exist_ok=True)
    message = {
        "nothing": r"config\.model\.weights='.*nothing': no such file; fetch .* or give the workdir of a run",
        "folder": r"config\.model\.weights=.*folder: no checkpoint in .*checkpoints; pass the workdir of a run",
    }[name]
    with pytest.raises(InputError, match=message):
        _start(folder, folder / name, checked=True)


def test_the_digest_is_that_of_the_weights_wherever_they_are(folder: Path, run: Path, tmp_path: Path):
    def digest(weights: Path) -> str | None:
        changes = {**SUPERVISED, "model.random_init": False, "model.weights": str(weights)}
        return run_digests(shrunk_demo(folder, **changes)).get("model.weights")

    config = shrunk_demo(folder, **SUPERVISED)
    assert digest(run) == digest(run / "checkpoints" / "2") is not None
    run.rename(tmp_path / "moved")
    (before, _), moved = (digest(tmp_path / "moved"), None), tmp_path / "moved"
    save_run(moved, config, step=4, miou=0.9)
    assert digest(moved) not in (before, None), "a better checkpoint is read"
    assert digest(moved / "checkpoints" / "2") == before
    assert digest(tmp_path / "nothing") is None
    moved.rename(run)


def test_the_shipped_start_has_learned_other_classes():
    trained = read_trained("shapes_resnet", "resnet_tiny")
    assert trained.classes == ("background", *DISTRACTORS)
    assert not set(TARGETS) & set(trained.classes)
