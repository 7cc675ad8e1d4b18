"""One judge of a config: a start tells everything that is wrong with it at once, and `check_data` tells the same."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import demo
from data_pipelines.checking import report
from data_pipelines.errors import Faults, InputError
from data_pipelines.shapes.benchmark import write_shapes
from data_pipelines.sources import folders
from data_pipelines.sources.records import SelectedSource
from semiovs_jax import check_data, embedded_benchmark, evaluated, experiment, ood_labels, train
from semiovs_jax.config_checks import inspect
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import SPEC, shrunk_demo

TEN_FAULTS = {
    "batch_size": 0,
    "data.crop_size": -1,
    "data.val_split": "splits/nowhere.txt",
    "model.backbone": "vgg",
    "method.confidence_threshold": 9.0,
    "ovs.vocabulary": "pets",
    "ovs.weights": "none.safetensors",
    "optim.name": "lion",
    "train.log_every_steps": 0,
    "eval.max_shapes": 0,
}


def test_ten_faults_are_told_by_one_start_and_by_check_data(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    config = shrunk_demo(tmp_path, **TEN_FAULTS)
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        train.train_and_evaluate(config, tmp_path / "run")
    assert time.monotonic() - start < 10
    faults = list(map(str, caught.value.args))
    assert len(faults) == len(TEN_FAULTS)
    for key in TEN_FAULTS:
        assert len([fault for fault in faults if f"config.{key}" in fault]) == 1, (key, faults)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "labels").exists()

    with pytest.raises(SystemExit) as stopped:
        check_data.main(SimpleNamespace(config=config, json=""))
    assert stopped.value.code == 1
    text = capsys.readouterr().out
    assert [line.strip() for line in text.split("\nfaults\n")[1].splitlines()[:10]] == faults
    assert text.splitlines()[-1] == "10 faults"


def test_names_are_settled_before_the_benchmark_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = demo.get_config().unlock()
    root, workdir = tmp_path / "shapes", tmp_path / "run"
    config.update_from_flattened_dict({"data.root": str(root), "model.backbone": "resnet_tony", "optim.name": "sdg"})
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    with pytest.raises(InputError) as caught:
        train.train_and_evaluate(config.lock(), workdir)
    assert [fault.split(" is ")[0].split("=")[0] for fault in caught.value.args] == [
        "config.model.backbone",
        "config.optim.name",
    ]
    assert not root.exists()
    assert not workdir.exists()


@pytest.fixture
def without_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ml_collections.ConfigDict:
    """A config whose benchmark is missing; it is a small one."""
    monkeypatch.setattr(embedded_benchmark, "write_shapes", lambda root: write_shapes(root, SPEC))
    root = tmp_path / "absent"
    return shrunk_demo(tmp_path, **{"data.root": str(root), "data.ood_root": str(root / "ood" / "JPEGImages")})


def test_labeling_evaluation_and_the_check_write_a_benchmark_that_is_missing(
    without_benchmark: ml_collections.ConfigDict, capsys: pytest.CaptureFixture
):
    root, faults = Path(without_benchmark.data.root), Faults()
    source = experiment.open_ood(without_benchmark, faults)
    assert (len(source or ()), faults.found) == (SPEC.ood, [])
    shutil.rmtree(root)
    evaluation = evaluated.open_evaluation(without_benchmark, make_mesh(jax.devices()[:1]))
    assert len(evaluation.evaluator.records) == SPEC.val
    shutil.rmtree(root)
    check_data.main(SimpleNamespace(config=without_benchmark, json=""))
    assert capsys.readouterr().out.splitlines()[-1] == "usable"


def test_a_benchmark_of_another_version_is_refused(tmp_path: Path):
    config = shrunk_demo(tmp_path)
    manifest = Path(config.data.root) / "manifest.json"
    assert inspect(config).faults == ()
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    (fault,) = inspect(config).faults
    assert fault.startswith(f"config.data.root={config.data.root}: holds version 2 of the shapes benchmark")
    assert "remove the folder, or name another one" in fault


@pytest.mark.parametrize("changes", [{"model.backbone": "vgg", "ovs.weights": "none"}, {"data.ood_root": "elsewhere"}])
def test_no_benchmark_is_written_that_is_not_read(
    without_benchmark: ml_collections.ConfigDict, changes: dict[str, str], capsys: pytest.CaptureFixture
):
    without_benchmark.update_from_flattened_dict(changes)
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(InputError):
        ood_labels.label_ood_images(without_benchmark, mesh)
    if "model.backbone" in changes:
        with pytest.raises(InputError, match=r"config\.model\.backbone is 'vgg'"):
            evaluated.open_evaluation(without_benchmark, mesh)
        with pytest.raises(SystemExit):
            check_data.main(SimpleNamespace(config=without_benchmark, json=""))
        assert "config.model.backbone is 'vgg'" in capsys.readouterr().out
    assert not Path(without_benchmark.data.root).exists()


def test_labels_among_the_images_are_refused_before_they_are_made(tmp_path: Path):
    config = shrunk_demo(tmp_path)
    config.ovs.labels_dir = f"{config.data.ood_root}/labels"
    message = r"config\.ovs\.labels_dir=.*/labels is below config\.data\.ood_root=.*labels would be taken for images"
    with pytest.raises(InputError, match=message):
        ood_labels.label_ood_images(config, make_mesh(jax.devices()[:1]))
    assert not Path(config.ovs.labels_dir).exists()


def test_labeling_tells_all_its_faults_at_once(tmp_path: Path):
    wrong = {"ovs.batch_size": 0, "ovs.weights": "none", "ovs.vocabulary": "pets", "data.ood_root": "nowhere"}
    with pytest.raises(InputError) as caught:
        ood_labels.label_ood_images(shrunk_demo(tmp_path, **wrong), make_mesh(jax.devices()[:1]))
    _assert_each_named_once(wrong, caught.value)


def test_evaluation_tells_all_its_faults_at_once(tmp_path: Path):
    wrong = {"eval.batch_size": 0, "model.backbone": "vgg", "method.name": "fixmatch", "data.val_split": "nowhere.txt"}
    with pytest.raises(InputError) as caught:
        evaluated.open_evaluation(shrunk_demo(tmp_path, **wrong), make_mesh(jax.devices()[:1]))
    _assert_each_named_once(wrong, caught.value)


def _assert_each_named_once(keys: Iterable[str], error: InputError) -> None:
    faults = list(map(str, error.args))
    assert sorted(key for fault in faults for key in keys if f"config.{key}" in fault) == sorted(keys), faults


def test_a_stream_that_is_too_short_is_found_before_its_images_are_labeled(tmp_path: Path):
    source = {"name": "web", "root": "shapes/ood/JPEGImages", "once": True}
    (tmp_path / "stream.json").write_text(json.dumps({"sources": [source]}))
    stream = {"data.ood_root": str(tmp_path / "stream.json")}
    assert inspect(shrunk_demo(tmp_path, **stream, **{"train.steps": 3})).faults == ()
    for length in ({"train.steps": 4}, {"train.steps": 0, "train.epochs": 1}):
        (fault,) = inspect(shrunk_demo(tmp_path, **stream, **length)).faults
        assert "a source that is drawn once lasts for 3 of the " in fault
    assert not (tmp_path / "labels").exists()


def test_a_config_without_faults_gives_the_parts_of_a_run(tmp_path: Path):
    found = inspect(shrunk_demo(tmp_path))
    run = found.usable()
    assert found.faults == ()
    assert set(run.sources) == {"labeled", "unlabeled", "val", "ood"}
    assert run.report.val_sizes
    assert found.cached == {"labeled": 0, "bad": 0, "missing": 8}


@pytest.fixture
def external(tmp_path: Path):
    """A config with labels of another tool, at first without a file."""
    config = shrunk_demo(tmp_path, **{"ovs.labels": "external", "ovs.weights": "", "ovs.vocabulary": ""})
    for image in sorted(Path(config.data.ood_root).iterdir()):
        plane = np.full(Image.open(image).size[::-1], 3, np.uint8)
        path = Path(config.ovs.labels_dir) / "labels" / f"{image.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(plane).save(path)
    return config


def test_external_labels_are_read_without_a_model_or_a_manifest(external):
    run = inspect(external).usable()
    batch = next(experiment.open_batches(external, run).iterator)
    assert set(batch["ood"]) == {"image", "valid", "index", "substituted", "label"}
    np.testing.assert_array_equal(batch["ood"]["label"][batch["ood"]["valid"]], 3)
    assert experiment.make_labelers(external, run.dataset, run.method, run.student)["ovs"].weights == ()


def test_faults_of_external_labels_are_told_at_once(external):
    labels = sorted((Path(external.ovs.labels_dir) / "labels").iterdir())
    labels[0].unlink()
    Image.fromarray(np.full((5, 5), 3, np.uint8)).save(labels[1])
    Image.fromarray(np.full(np.array(Image.open(labels[2])).shape, 99, np.uint8)).save(labels[2])
    faults = inspect(external).faults
    assert len(faults) == 3
    assert "1 of 8 OOD images have no label" in faults[0] + faults[1] + faults[2]


def test_a_threshold_needs_external_confidences(external):
    config = external.unlock()
    config.method.ovs_threshold = 0.5
    (fault,) = inspect(config.lock()).faults
    assert "config.method.ovs_threshold=0.5 needs one for each" in fault


@pytest.mark.slow
def test_a_hundred_thousand_ood_files_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = shrunk_demo(tmp_path, **{"ovs.labels": "online", "data.ood_root": str(tmp_path / "many")})
    for index in range(100_000):
        if index % 1000 == 0:
            folder = tmp_path / "many" / str(index // 1000)
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / f"{index}.jpg")
        else:
            os.link(folder / f"{index // 1000 * 1000}.jpg", folder / f"{index}.jpg")
    listed: Counter[str] = Counter()
    walk = os.walk

    def counted(top, *arguments, **options):
        listed[str(top)] += 1
        return walk(top, *arguments, **options)

    monkeypatch.setattr(folders.os, "walk", counted)
    # A look at each of them takes half a minute and lists nothing.
    monkeypatch.setattr(report, "spot_checked", lambda source: SelectedSource(source, np.arange(min(len(source), 9))))
    run = inspect(config).usable()
    data = experiment.open_batches(config, run)
    assert data.lengths["ood"] == 100_000
    assert next(data.iterator)["ood"]["image"].shape == (2, 33, 33, 3)
    assert listed == {str(tmp_path / "many"): 1}
