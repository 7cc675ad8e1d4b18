"""The package from Python: load, train, evaluate, label; and that importing it is cheap."""

import doctest
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import ml_collections
import numpy as np
import pytest
from PIL import Image

import semiovs_jax
from data_pipelines.errors import InputError
from semiovs_jax import ood_labels
from semiovs_jax.prediction import model
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.runtime import config_files
from tests.experiment import shrunk_demo


@pytest.mark.parametrize("module", [semiovs_jax, model, config_files])
def test_the_examples_of_the_docstrings(
    module: ModuleType, folder: Path, run: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
):
    (folder / "photo.jpg").write_bytes(photos[0].read_bytes())
    monkeypatch.chdir(folder)  # has runs/demo
    found = doctest.testmod(module)
    assert found.attempted > 2
    assert found.failed == 0


@pytest.fixture(scope="module")
def loaded(run: Path) -> model.Model:
    return semiovs_jax.load(run)


def test_an_image_may_be_an_array_or_a_path_and_many_are_a_list(loaded: model.Model, photos: list[Path]):
    image = np.asarray(Image.open(photos[0]))
    first = loaded.predict(image)
    assert first.label.shape == first.confidence.shape == image.shape[:2]
    assert (first.label.dtype, first.confidence.dtype) == (np.uint8, np.float32)
    assert loaded.classes[0] == "background"
    assert loaded.palette[first.label].shape == image.shape
    found = loaded.predict([photos[0], str(photos[1]), image[:5, :7]])
    assert (found[0].label == first.label).all()
    assert found[2].label.shape == (5, 7)
    assert loaded.predict([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"the image is float32\[4, 5, 3\]: pass uint8 \[H, W, 3\]"),
        (np.zeros((4, 5), np.uint8), r"the image is uint8\[4, 5\]"),
        ([np.zeros((4, 5, 3), np.uint8), np.zeros((0, 5, 3), np.uint8)], r"image 1 is uint8\[0, 5, 3\]"),
        ("gone.jpg", r"gone\.jpg: cannot be read"),
    ],
)
def test_other_images_are_refused(image: object, message: str, loaded: model.Model):
    with pytest.raises(InputError, match=message):
        loaded.predict(image)


def test_values_of_the_config_can_be_changed(run: Path):
    with pytest.raises(InputError, match=r"config\.eval\.stride=40 with config\.eval\.window=33"):
        semiovs_jax.load(run, changes={"eval.window": 33, "eval.stride": 40})
    with pytest.raises(InputError) as error:
        semiovs_jax.load(run, scales=(1, 0), changes={"eval.window": 33, "eval.stride": 40})
    scales = "config.eval.scales=(1.0, 0.0): set it to positive factors, such as 0.75,1,1.25"
    assert [fault.partition(" with")[0] for fault in error.value.args] == [scales, "config.eval.stride=40"]
    with pytest.raises(InputError, match=r"changes: config\.eval\.windows: no such key \(did you mean window\?\)"):
        semiovs_jax.load(run, changes={"eval.windows": 33})
    with pytest.raises(InputError, match="choose 'best' or 'latest'"):
        semiovs_jax.load(run, which="newest")
    with pytest.raises(InputError, match="holds no run"):
        semiovs_jax.load(run.parent)


def test_a_run_is_evaluated_with_the_views_by_which_it_predicts(run: Path, photos: list[Path], loaded: model.Model):
    config = get_config(str(run)).unlock()
    config.eval.update(scales=(0.75, 1.0, 1.25), flip=True)
    record = semiovs_jax.evaluate(run, config=config)
    assert "mean probabilities of 6 views: scales 0.75, 1, 1.25, each also mirrored" in record["protocol"]
    found = semiovs_jax.load(run, scales=(0.75, 1, 1.25), flip=True).predict(list(photos))
    labels = [np.asarray(Image.open(path.parents[1] / "SegmentationClass" / f"{path.stem}.png")) for path in photos]
    right = sum((image.label == label).sum() for image, label in zip(found, labels, strict=True))
    labeled = sum((label != loaded.dataset.ignore_index).sum() for label in labels)
    assert record["pixel_accuracy"] == pytest.approx(right / labeled, abs=1e-4)


def test_a_config_is_loaded_with_changes():
    config = semiovs_jax.load_config("configs/custom.py", {"data.root": "photos", "optim.learning_rate": 0.1})
    assert (config.data.ood_root, config.optim.learning_rate) == ("photos/ood", 0.1)
    changes = {"train.stpes": 3, "train.steps": "many", "train": 3, "data.root.x": ""}
    with pytest.raises(InputError) as caught:
        semiovs_jax.load_config("configs/custom.py", changes)
    assert [fault.partition(";")[0] for fault in caught.value.args] == [
        "changes: config.train.stpes: no such key (did you mean steps?)",
        "changes: config.train.steps='many': expected a value of type int",
        "changes: config.train=3: expected a value of type ConfigDict",
        "changes: config.data.root.x: config.data.root is a value, 'data/custom', and has no keys",
    ]


def test_commands_are_functions_and_modules(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    record = semiovs_jax.evaluate(run, which="latest")
    assert record["step"] == 2
    assert 0 < record["pixel_accuracy"] <= 1
    asked: list[ml_collections.ConfigDict] = []
    monkeypatch.setattr(ood_labels, "label_ood_images", lambda config, mesh: asked.append(config))
    config = shrunk_demo(folder)
    semiovs_jax.label(config)
    semiovs_jax.label("configs/demo.py")
    assert (asked[0], asked[1].data.dataset) == (config, "shapes")
    report = semiovs_jax.check_data(config).splitlines()
    assert (report[0], report[-1]) == ("shapes: 9 classes, ignore index 255", "usable")
    with pytest.raises(InputError, match="no such file"):
        semiovs_jax.train("configs/gone.py", folder / "gone")
    assert list(inspect.signature(semiovs_jax.train.train).parameters) == ["config", "workdir", "fork_from"]
    assert inspect.ismodule(semiovs_jax.train)


def test_the_package_is_imported_without_jax():
    code = """
import sys
import semiovs_jax
names = {"load", "load_config", "check_data", "train", "evaluate", "label", "__version__"}
assert names <= set(dir(semiovs_jax))
print(semiovs_jax.__version__, sorted({"jax", "numpy", "grain", "absl"} & set(sys.modules)))
try:
    semiovs_jax.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version = metadata.version("semiovs-jax")
    assert done.stdout.splitlines() == [f"{version} []", "module 'semiovs_jax' has no attribute 'nothing'"]


def test_types_are_shipped():
    assert Path(semiovs_jax.__file__).with_name("py.typed").is_file()
