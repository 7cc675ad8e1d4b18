"""Whole runs of the real config, shrunk: what they write, how they stop and go on, and what they refuse."""

import json
import logging
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data_pipelines.errors import InputError
from data_pipelines.loading.batches import BatchIterator
from data_pipelines.signals import Stopped
from semiovs_jax import evaluate, experiment, optim, train
from semiovs_jax.benchmarks.claims.rows import ROWS
from semiovs_jax.checkpoints.checkpointer import restore_weights
from semiovs_jax.evaluation.evaluator import Evaluator, NotFiniteLogitsError
from semiovs_jax.finite import not_finite
from semiovs_jax.initial import initial_weights
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import shrunk_demo
from tests.html_page import SelfContained
from tests.ovs.tiny_clip import write_vocabulary

SHORT_SIDE_AND_WINDOWS = {
    "data.crop_size": 32,
    "data.scale_short_side": 32,
    "eval.short_side": 48,
    "eval.window": 32,
    "eval.stride": 24,
}


@pytest.fixture(scope="module", autouse=True)
def two_devices() -> Iterator[None]:
    """Sharded, but cheaper to compile for than eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:2]))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmark, weights and cached labels shared by the runs of this file, and its OOD images as a stream."""
    folder = tmp_path_factory.mktemp("experiment")
    source = {"name": "web", "root": "shapes/ood/JPEGImages", "once": True}
    (folder / "stream.json").write_text(json.dumps({"sources": [source]}))
    return folder


def _state(workdir: Path, step: int):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(workdir.absolute() / "checkpoints" / str(step) / "state")


def _assert_same_state(a: Path, b: Path, step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, _state(a, step), _state(b, step))


@pytest.fixture(scope="module")
def whole_run(folder: Path) -> Path:
    workdir = folder / "whole"
    train.train_and_evaluate(shrunk_demo(folder), workdir)
    return workdir


@pytest.mark.slow
def test_a_run_leaves_all_that_a_person_looks_for(whole_run: Path, folder: Path):
    names = {path.name for path in whole_run.iterdir()}
    assert {"summary.txt", "metrics.jsonl", "tensorboard", "panels", "curves.png", "table.txt", "result.json"} <= names
    assert {"predictions.png", "report.html"} <= names
    page = SelfContained((whole_run / "report.html").read_text(encoding="utf-8"))
    assert f"more in {folder / 'labels' / 'contact_sheet.html'}" in "".join(page.text)
    result = json.loads((whole_run / "result.json").read_text())
    assert result["last"]["step"] == 4
    assert 0 <= result["last"]["miou"] <= result["best"]["miou"] <= 1
    assert "single scale" in result["protocol"]
    assert result["bad_steps"] == []
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate_head"] for record in lines if record["event"] == "train"]
    assert rates == pytest.approx([2e-2, 2e-2, 2e-2 * (3 / 4) ** 0.9, 2e-2 * (2 / 4) ** 0.9])
    assert all(record["gradient_norm"] > 0 for record in lines if record["event"] == "train")
    assert {"steps", "compile", "labeling", "evaluation", "checkpoint"} <= result["seconds"].keys()
    assert result["seconds_since_start"] == pytest.approx(sum(result["seconds"].values()), abs=1)
    assert not (whole_run / "profile").exists()
    manifest = json.loads((folder / "labels" / "manifest.json").read_text())
    assert manifest["finished"]
    assert len(list((folder / "labels" / "labels").rglob("*.png"))) == 8


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(whole_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    workdir = folder / "stopped"
    ask = Preemption.reached

    def terminated_at_step_3(self: Preemption, step: int) -> bool:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return ask(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", terminated_at_step_3)
        with pytest.raises(Stopped, match="143"):
            train.train_and_evaluate(shrunk_demo(folder), workdir)
    assert not (workdir / "result.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "initial_weights", None)  # the restored state is the only one in memory
        train.train_and_evaluate(shrunk_demo(folder, **{"train.profile_steps": (1, 1)}), workdir)
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    _assert_same_state(whole_run, workdir, 4)
    assert (workdir / "predictions.png").read_bytes() == (whole_run / "predictions.png").read_bytes()
    assert (workdir / "report.html").is_file()
    whole, stopped = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole_run, workdir)
    )
    losses = [[(r["step"], r["loss"]) for r in records if r["event"] == "train"] for records in (whole, stopped)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_last_step_is_saved_if_the_data_fail_after_a_signal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = BatchIterator.__next__

    def fails_after_a_signal(self: BatchIterator):
        if self.get_state()["next_index"] == 3:
            signal.raise_signal(signal.SIGTERM)
            raise InputError("the storage is gone")
        return read(self)

    monkeypatch.setattr(BatchIterator, "__next__", fails_after_a_signal)
    with pytest.raises(Stopped, match="143") as stopped:
        train.train_and_evaluate(
            shrunk_demo(folder, **{"method.name": "supervised", "method.ood": "none", "train.panel_images": 0}),
            tmp_path,
        )
    assert stopped.value.where == "after step 3 of 4 (the storage is gone)"
    assert (tmp_path / "checkpoints" / "3").is_dir()


@pytest.mark.slow
def test_prevmatch_killed_goes_on_bit_for_bit_with_its_snapshots(folder: Path, monkeypatch: pytest.MonkeyPatch):
    # mu is 0 in the first epoch; six steps of two images are one epoch of the twelve unlabeled ones.
    config = shrunk_demo(
        folder,
        **{
            "method.name": "prevmatch",
            "method.snapshots.confidence_threshold": 0.0,
            "train.steps": 12,
            "train.eval_every_steps": 4,
            "train.checkpoint_every_steps": 4,
            "train.panel_images": 0,
        },
    )
    whole, killed = folder / "prevmatch", folder / "prevmatch_killed"

    def killed_at_step_9(self: Preemption, step: int) -> bool:
        if step == 9:  # what lies on the disk now is what a kill would leave
            while not (whole / "checkpoints" / "8").exists():
                time.sleep(0.1)
            shutil.copytree(whole, killed)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", killed_at_step_9)
        train.train_and_evaluate(config, whole)
    assert not (killed / "checkpoints" / "12").exists()
    saved = _state(killed, 8)
    assert saved["labelers"]["snapshots"]["pushed"] > 0
    train.train_and_evaluate(config, killed)
    _assert_same_state(whole, killed, 12)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert any(record.get("loss_u_fp_prev", 0) > 0 for record in lines)


def _rate_of_1e30_from_update_5(base: float, total_steps: int, power: float):
    del total_steps, power
    return lambda update: jnp.where(update < 4, base, 1e30)


@pytest.mark.slow
@pytest.mark.parametrize(("preempted", "every"), [(False, 2), (True, 4)])
def test_a_run_that_diverges_ends_and_its_checkpoints_stay(
    preempted: bool,
    every: int,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    changes = {"method.name": "supervised", "method.ood": "none", "train.panel_images": 0, "train.steps": 12}
    config = shrunk_demo(folder, **changes, **{"train.log_every_steps": 100})
    with monkeypatch.context() as patch:
        patch.setattr(optim, "poly_learning_rate", _rate_of_1e30_from_update_5)
        # Step 5 moves the parameters by numbers that are finite; the loss of step 6 is not.
        patch.setattr(Preemption, "reached", lambda self, step: preempted and step == 6)
        config.train.eval_every_steps = config.train.checkpoint_every_steps = every
        with pytest.raises(InputError) as error:
            train.train_and_evaluate(config, tmp_path)
    message = str(error.value)
    assert re.search(
        r"^step 6: not finite: .*loss, loss_x.*; this state is not saved; the newest checkpoint is", message
    )
    assert f"{tmp_path}/checkpoints/4, the best" in message
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == (["4"] if preempted else ["2", "4"])
    for step in saved:
        assert not not_finite(_state(tmp_path, int(step)))
    capsys.readouterr()
    evaluate.main(SimpleNamespace(config=config, workdir=str(tmp_path), which="best", out=None))
    assert "mIoU, all classes" in capsys.readouterr().out


@pytest.mark.slow
def test_an_evaluation_without_a_score_ends_no_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_score(self: Evaluator, params: object, batch_stats: object) -> None:
        raise NotFiniteLogitsError("1 of 4 validation images")

    monkeypatch.setattr(Evaluator, "run_by_image", no_score)
    changes = {"method.name": "supervised", "method.ood": "none", "train.panel_images": 0}
    train.train_and_evaluate(shrunk_demo(folder, **changes), tmp_path)
    assert restore_weights(tmp_path, {}).meta["miou"] is None
    assert "best" not in json.loads((tmp_path / "result.json").read_text())
    assert "Learning curves" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_initial_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: object) -> tuple:
        params, batch_stats = initial_weights(*arguments)
        return jax.tree.map(lambda leaf: leaf * jnp.nan, params), batch_stats

    monkeypatch.setattr(experiment, "initial_weights", broken)
    config = shrunk_demo(folder, **{"method.name": "supervised", "method.ood": "none"})
    with pytest.raises(
        InputError, match=r"config\.model\.weights='': the initial state holds a NaN .* params/backbone"
    ):
        train.train_and_evaluate(config, tmp_path)


@pytest.mark.slow
def test_a_finished_run_started_again_changes_nothing_and_compiles_nothing(
    whole_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def files():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in whole_run.rglob("*")}

    def never(*arguments, **options):
        raise AssertionError("the run is finished")

    before = files()
    for name in ("inspect_config", "compile_step"):
        monkeypatch.setattr(train, name, never)
    monkeypatch.setattr(experiment, "initial_state", never)
    with caplog.at_level(logging.INFO, "semiovs_jax"):
        train.train_and_evaluate(shrunk_demo(folder), whole_run)
    assert files() == before
    assert "finished: nothing to do" in caplog.text
    assert (whole_run / "table.txt").read_text().strip() in caplog.text


@pytest.mark.slow
def test_a_run_becomes_longer_and_forks_record_their_origin(folder: Path, tmp_path: Path):
    supervised = {"method.name": "supervised", "method.ood": "none", "train.panel_images": 0}
    short, fork = tmp_path / "short", tmp_path / "fork"
    train.train_and_evaluate(shrunk_demo(folder, **supervised, **{"train.steps": 2}), short)
    first = json.loads((short / "result.json").read_text())
    train.train_and_evaluate(shrunk_demo(folder, **supervised, **{"train.steps": 4}), short)
    result = json.loads((short / "result.json").read_text())
    assert result["last"]["step"] == result["steps"] == 4
    assert [start["config_sha256"] for start in result["earlier_starts"]] == [first["config_sha256"]]
    assert result["digests"] == first["digests"]
    lines = [json.loads(line) for line in (short / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines if record["event"] == "train"] == [1, 2, 3, 4]

    other = shrunk_demo(folder, **supervised, **{"train.steps": 6, "optim.learning_rate": 1e-3})
    with pytest.raises(InputError, match=r"config\.optim\.learning_rate was 0\.02, is 0\.001"):
        train.train_and_evaluate(other, short)
    train.train_and_evaluate(other, fork, fork_from=short)
    result = json.loads((fork / "result.json").read_text())
    assert result["forked_from"]["checkpoint"] == str(short / "checkpoints" / "4")
    lines = [json.loads(line) for line in (fork / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines if record["event"] == "train"] == [5, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method.name": "supervised", "method.ood": "none", "train.fsdp": 2},
        {"method.ood": "unlabeled"},
        {
            "ovs.labels": "online",
            "model.dtype": "bfloat16",
            "model.remat": "full",
            "data.ood_root": "stream.json",
            "data.num_workers": 1,
        },
        {
            **ROWS["supervised, SemiVL's student"].changes,
            **SHORT_SIDE_AND_WINDOWS,
        },
        pytest.param(
            {**ROWS["SemiOVS on SemiVL"].changes, "method.ovs_threshold": 0.3, **SHORT_SIDE_AND_WINDOWS},
            marks=pytest.mark.long,
        ),
    ],
    ids=[
        "supervised-fsdp",
        "ood-as-unlabeled",
        "online-stream-worker-bfloat16-remat",
        "student-of-semivl-short-side-and-windows",
        "semivl-short-side-and-windows",
    ],
)
def test_other_methods_and_options_run(changes: dict, folder: Path, tmp_path: Path):
    changes = {**changes, "train.steps": 2, "train.panel_images": 0}
    if "data.ood_root" in changes:
        changes["data.ood_root"] = str(folder / changes["data.ood_root"])
    train.train_and_evaluate(shrunk_demo(folder, **changes), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in lines if record["event"] == "train")
    assert lines[-1]["step"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.root": "nowhere", "data.make": ""}, r"nowhere"),
        ({"data.make": "coco"}, r"config\.data\.make='coco'"),
        ({"model.random_init": False}, r"config\.model\.weights=''.*random_init=True"),
        ({"model.backbone": "vgg"}, r"config\.model\.backbone.*vgg"),
        ({"ovs.weights": "none.safetensors"}, r"none\.safetensors"),
        ({"ovs.labels": "guessed"}, r"config\.ovs\.labels='guessed'"),
        ({"batch_size": 3}, r"config\.batch_size=3 cannot be split over 2 devices"),
        ({"train.fsdp": 3}, r"config\.train\.fsdp=3 does not divide the 2 device"),
        ({"method.name": "fixmatch"}, r"config\.method\.name='fixmatch': no such method"),
        ({"train.steps": 0, "train.epochs": 0}, r"make no step"),
        ({"eval.window": 999}, r"config\.eval\.window=999 is larger than a validation image"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_configs_are_refused_before_training(changes: dict, message: str, folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=f"(?s){message}"):
        train.train_and_evaluate(shrunk_demo(folder, **changes), tmp_path / "run")


def test_a_stream_that_the_run_would_see_twice_is_refused(folder: Path, tmp_path: Path):
    changes = {"data.ood_root": str(folder / "stream.json"), "ovs.labels": "online", "train.steps": 4}
    with pytest.raises(InputError, match=r"stream\.json: a source that is drawn once lasts for 3 of the 4 steps"):
        train.train_and_evaluate(shrunk_demo(folder, **changes), tmp_path / "run")


def test_a_vocabulary_of_another_size_is_refused(folder: Path, tmp_path: Path):
    vocabulary = write_vocabulary(tmp_path / "pets.json")
    with pytest.raises(InputError, match=r"(?s)pets.*3 classes, but the dataset has 9"):
        train.train_and_evaluate(shrunk_demo(folder, **{"ovs.vocabulary": vocabulary}), tmp_path / "run")


def test_an_unwritable_workdir_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"--workdir=.*file.*cannot be written"):
        train.train_and_evaluate(shrunk_demo(folder), tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(whole_run: Path, folder: Path):
    with pytest.raises(InputError, match=r"(?s)whole: holds.*backbone was 'resnet_tiny', is 'resnet50'.*--fork_from="):
        train.train_and_evaluate(shrunk_demo(folder, **{"model.backbone": "resnet50"}), whole_run)


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(whole_run: Path, folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"whole/checkpoints/4: a checkpoint of another model"):
        train.train_and_evaluate(shrunk_demo(folder, **{"model.backbone": "resnet50"}), tmp_path, fork_from=whole_run)
