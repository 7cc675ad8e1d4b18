"""Labels by class names without a config, and labels of another tool: what `label` writes, keeps and refuses."""

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import custom
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.shapes.benchmark import ShapesSpec, write_shapes
from semiovs_jax import label, label_request, ood_labels, train
from semiovs_jax.config_checks import inspect
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.runtime.sharding import make_mesh
from tests.custom_tree import CLASSES as NAMES
from tests.custom_tree import write_custom
from tests.experiment import shrunk_demo
from tests.fake_ovs import ColorOVS

CLASSES = "floor=floor|wall,blob,bar,other=cross"
TEMPLATES = ["{}", "a {}", "a drawing of a {}", "a picture of a {}"]  # those of the shipped SED
SPEC = ShapesSpec(labeled=4, unlabeled=12, val=4, ood=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark") / "shapes"
    write_shapes(root, SPEC)
    (root / "templates.json").write_text(json.dumps(TEMPLATES))
    return root / "ood" / "JPEGImages"


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch):
    for module in (label_request, train):
        monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(jax.devices()[:1]))


@pytest.fixture
def colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake OVS in place of SED."""
    monkeypatch.setattr(ood_labels, "build_ovs", lambda config, num_classes: ColorOVS(num_classes=num_classes))


@pytest.fixture
def end(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The last two lines that the command logs: what it wrote, and the next command."""
    caplog.set_level(logging.INFO, logger="semiovs_jax")
    return lambda: caplog.messages[-2:]


def call(photos: Path | None, out: Path | None, config: ml_collections.ConfigDict | None = None, **changes) -> None:
    if config is None:
        config = custom.get_config()
        config.ovs.update({"templates": str(photos.parents[1] / "templates.json"), "image_size": 64, "batch_size": 4})
    flags = {"source": str(photos or ""), "out": str(out or ""), "classes": CLASSES, "ovs_weights": "shapes_sed"}
    flags |= {"import": "", "distributed": False, "process_index": None, "process_count": None}
    label.main(SimpleNamespace(config=config, **flags | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def planes(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


@pytest.mark.slow
def test_labels_by_names_are_those_of_a_config_with_the_same_words(photos: Path, tmp_path: Path, end, caplog):
    call(photos, tmp_path / "out")
    assert "the mean confidence of the labels is" in caplog.text
    _, following = end()

    words = [{"name": "floor", "concepts": ["floor", "wall"]}, *({"name": n, "concepts": [n]} for n in ("blob", "bar"))]
    vocabulary = {"name": "mine", "source": "a test", "templates": TEMPLATES}
    vocabulary["classes"] = [*words, {"name": "other", "concepts": ["cross"]}]
    (tmp_path / "mine.json").write_text(json.dumps(vocabulary))
    dataset = {"name": "mine", "classes": [entry["name"] for entry in vocabulary["classes"]], "ignore_index": 255}
    (tmp_path / "classes.json").write_text(json.dumps(dataset))
    config = custom.get_config()
    config.data.update({"dataset": str(tmp_path / "classes.json"), "ood_root": str(photos)})
    config.ovs.update({"vocabulary": str(tmp_path / "mine.json"), "templates": "", "weights": "shapes_sed"})
    config.ovs.update({"image_size": 64, "batch_size": 4, "labels_dir": str(tmp_path / "by_config")})
    call(None, None, config, classes="", ovs_weights="")
    assert end()[1].endswith(" train --config=FILE --workdir=RUN")
    by_names, by_config = planes(tmp_path / "out"), planes(tmp_path / "by_config")
    assert len(by_names) == 2 * SPEC.ood
    jax.tree.map(np.testing.assert_array_equal, by_names, by_config)

    # The next command finds nothing wrong with these labels.
    root = write_custom(tmp_path / "data")
    names = {"classes": [*NAMES, "other"], "name": "custom", "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(names))
    config = custom.get_config().unlock()
    flags = dict(flag.split("=", 1) for flag in shlex.split(following)[-9:])
    changes = {key.removeprefix("--config."): value for key, value in flags.items() if key.startswith("--config.")}
    assert changes.pop("data.root") == "DATA"
    changes |= {key: int(changes[key]) for key in ("ovs.image_size", "ovs.batch_size")}
    config.update_from_flattened_dict({**changes, "data.root": str(root), "data.crop_size": 33, "batch_size": 1})
    config.update_from_flattened_dict({"model.backbone": "resnet_tiny", "model.random_init": True})
    found = inspect(config)
    assert found.faults == ()
    assert found.cached == {"labeled": SPEC.ood, "bad": 0, "missing": 0}


def test_the_same_command_again_keeps_labels_and_edited_colors(photos: Path, tmp_path: Path, colors, end, caplog):
    out = tmp_path / "out"
    call(photos, out)
    assert "shapes_sed: this small model is trained on drawn shapes" in caplog.text
    wrote, following = end()
    assert wrote == (
        f"{out}: labels/, vocabulary.json, classes.json; look at {out}/contact_sheet.html before you train on the "
        "labels"
    )
    assert " train --config=configs/custom.py --workdir=RUN" in following
    classes = out / "classes.json"
    assert dataset_info(classes).classes == ("floor", "blob", "bar", "other")
    assert load_vocabulary(str(out / "vocabulary.json")).class_of_concept == (0, 0, 1, 2, 3)
    edited = json.loads(classes.read_text()) | {"palette": [[1, 2, 3]]}
    classes.write_text(json.dumps(edited))
    (removed,) = list(out.glob("labels/*_000001.png"))
    removed.unlink()
    before = content(out)
    call(photos, out)
    after = content(out)
    assert after.keys() - before.keys() == {str(removed.relative_to(out))}
    same = {name for name in before if before[name] == after[name]}
    assert before.keys() - same == {"contact_sheet.html"}


def test_edited_words_need_a_new_folder(photos: Path, tmp_path: Path, colors):
    out = tmp_path / "out"
    call(photos, out)
    before = content(out)
    vocabulary = out / "vocabulary.json"
    vocabulary.write_text(vocabulary.read_text().replace('"cross"', '"plus sign"'))
    edited = content(out)
    for classes, message in ((CLASSES, "has other words than --classes"), (str(vocabulary), "are made by other words")):
        with pytest.raises(InputError, match=message) as error:
            call(photos, out, classes=classes)
        assert f"--classes={vocabulary}" in str(error.value)
        assert f"--out={out}_2" in str(error.value)
    assert content(out) == edited
    call(photos, tmp_path / "out_2", classes=str(vocabulary))
    assert (tmp_path / "out_2" / "vocabulary.json").read_bytes() == edited["vocabulary.json"]
    vocabulary.write_bytes(before["vocabulary.json"])
    (out / "classes.json").write_text((out / "classes.json").read_text().replace('"bar"', '"rod"'))
    with pytest.raises(InputError, match="has the classes floor, blob, rod, other, but --classes has floor, blob, bar"):
        call(photos, out)
    vocabulary.unlink()
    (out / "classes.json").unlink()
    before = content(out)
    with pytest.raises(InputError, match=r"are made by other words .* --classes=sky,sea --out="):
        call(photos, out, classes="sky,sea")
    assert content(out) == before


def test_labels_of_another_tool_are_left_to_the_check(photos: Path):
    config = custom.get_config()
    config.ovs.update({"labels": "external", "labels_dir": "masks"})
    with pytest.raises(InputError, match=r"config\.ovs\.labels_dir=masks, .* nothing to label; .* check_data --config"):
        call(photos, None, config, classes="", ovs_weights="")


def test_all_faults_are_told_at_once_and_nothing_stays(photos: Path, tmp_path: Path, colors):
    with pytest.raises(InputError) as error:
        call(tmp_path / "none", tmp_path / "none" / "out", classes="sky,,sea", ovs_weights="")
    words, images, below, weights = error.value.args
    assert words.startswith("--classes: entry 2")
    assert "none: no such folder" in images
    assert "is below config.data.ood_root" in below
    assert "--ovs_weights=FILE" in weights
    assert "semiovs_jax.convert" in weights
    assert "shapes_sed" in weights
    with pytest.raises(InputError, match="80 prompt templates"):  # found when the words are written
        call(photos, tmp_path / "out", custom.get_config())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError) as error:
        call(None, None, custom.get_config())
    assert [fault.split(",")[0] for fault in error.value.args] == [
        "--classes needs --source=FOLDER",
        "--classes needs --out=FOLDER",
    ]


def test_the_command_needs_no_config(photos: Path, tmp_path: Path):
    command = [sys.executable, "-m", "semiovs_jax.label", f"--source={photos}", "--classes=sky,sea", "--out=labels"]
    environment = {"PYTHONPATH": str(Path(label.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("error: config.ovs.weights='weights/sed_large.safetensors': no such file; name the ")
    assert list(tmp_path.iterdir()) == []


def test_imported_labels_need_neither_config_nor_weights(photos: Path, tmp_path: Path, end):
    tool = tmp_path / "tool"
    tool.mkdir()
    for path in photos.iterdir():
        Image.new("L", Image.open(path).size, 1).save(tool / f"{path.stem}.png")
    classes = "blob,background=floor|" + "|".join(f"thing {number}" for number in range(99))
    call(photos, tmp_path / "out", classes=classes, ovs_weights="", **{"import": str(tool)})
    assert dataset_info(tmp_path / "out" / "classes.json").background == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.json",
        "contact_sheet.html",
        "labels",
        "vocabulary.json",
    ]
    assert "Imported labels of 2 images" in (tmp_path / "out" / "contact_sheet.html").read_text()
    assert "--config.ovs.labels=external" in end()[1]
    (tool / "extra.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"belong to no OOD image \(extra\.png\)"):
        call(photos, tmp_path / "new", ovs_weights="", **{"import": str(tool)})
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="--import needs --out") as error:
        call(None, None, custom.get_config(), classes="", **{"import": str(tool)})
    assert "leave out --ovs_weights" in str(error.value)


@pytest.mark.slow
def test_a_run_trains_on_imported_labels(tmp_path: Path, end, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:2]))  # the program of `test_train`
    config = shrunk_demo(tmp_path, **{"ovs.weights": "none"})
    tool = tmp_path / "shapes" / "ood" / "SegmentationClassFull"
    for path in tool.glob("*.png"):  # distractors are background
        plane = np.asarray(Image.open(path))
        Image.fromarray(np.where(plane < dataset_info("shapes").num_classes, plane, 0).astype(np.uint8)).save(path)
    call(
        None,
        tmp_path / "labels",
        config.copy_and_resolve_references(),
        classes="",
        ovs_weights="",
        **{"import": str(tool)},
    )
    assert end()[1].endswith(f"--config.ovs.labels=external --config.ovs.labels_dir={tmp_path / 'labels'}")
    config.ovs.update({"labels": "external", "labels_dir": str(tmp_path / "labels")})
    assert inspect(config).faults == ()
    train.train_and_evaluate(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["last"]["step"] == 4
