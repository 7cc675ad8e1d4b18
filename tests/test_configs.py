"""Every config file resolves, is locked, and describes a run that can be built."""

import ast
import functools
import importlib
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import context, custom, voc
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from semiovs_jax.experiment import Arguments, abstract_inputs, make_student
from semiovs_jax.models import Functional
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.runtime.sharding import make_mesh, replicated, shard_batch
from semiovs_jax.train_state import TrainState, count_parameters
from semiovs_jax.train_step import StepSpec, make_train_step
from tests.custom_tree import write_custom
from tests.golden import Golden, golden_path

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "common"))
ROWS = {"voc": (voc.SPLITS, voc.METHODS), "context": (context.SPLITS, context.METHODS)}
PUBLISHED = [
    f"{file}:{split},{method}" for file, (splits, methods) in ROWS.items() for split in splits for method in methods
]
# Rows that differ in their split alone have one run.
RUNS = [
    *(f"{file}:{splits[0]},{method}" for file, (splits, methods) in ROWS.items() for method in methods),
    "demo",
    "custom",
]


def _load(name: str) -> ConfigDict:
    """The config of "FILE" or "FILE:ARGUMENT"."""
    file, *argument = name.split(":")
    return importlib.import_module(f"configs.{file}").get_config(*argument)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_resolves_and_says_how_it_is_run(path: Path):
    name = path.stem
    assert _load(f"{name}:{ROWS[name][0][0]}" if name in ROWS else name).is_locked
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"--config=configs/{path.name}" in docstring
    for word in ("Hardware", "ime", "mIoU"):
        assert word in docstring


def test_there_is_a_row_for_every_published_experiment():
    assert len(PUBLISHED) == 5 * 4 + 5 * 3
    for name in PUBLISHED:
        config, (file, split, method) = _load(name), re.split("[:,]", name)
        assert config.is_locked
        assert config.data.dataset == {"voc": "voc21", "context": "context60"}[file]
        assert config.data.labeled_split == f"splits/{split}/labeled.txt"
        assert config.data.unlabeled_split == f"splits/{split}/unlabeled.txt"
        assert config.method.name == method
        assert config.method.ood == ("none" if method == "supervised" else "ovs")


def test_without_a_method_it_is_unimatch_and_voc92_is_short_for_a_row():
    assert _load("voc:92").to_json() == _load("voc:92,unimatch").to_json() == _load("voc92").to_json()


@pytest.mark.parametrize("argument", ["", "93", "92,semivil", ",semivl", "92,semivl,x"])
def test_a_row_that_is_not_there_is_refused_with_those_that_are(argument: str):
    with pytest.raises(InputError, match="92, 183, 366, 732, 1464 and a METHOD of unimatch, prevmatch, semivl, super"):
        voc.get_config(argument)


def test_paths_of_ones_own_task_follow_its_root_unless_they_are_set():
    config = custom.get_config()
    config.data.root = "elsewhere"
    config.data.ood_root = "photos"
    found = config.to_dict()
    assert (found["data"]["dataset"], found["data"]["ood_root"]) == ("elsewhere/classes.json", "photos")
    assert found["ovs"]["vocabulary"] == config.ovs.vocabulary == "elsewhere/vocabulary.json"
    assert json.loads(config.to_json())["ovs"]["labels_dir"] == "elsewhere/ovs_labels"
    assert config.data.root == "elsewhere"


def _inputs(config: ConfigDict) -> tuple[StepSpec, Arguments]:
    """A run's step, and the shapes of everything it is called with."""
    return abstract_inputs(config, make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("name", RUNS)
def test_its_run_can_be_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = _load(name).unlock()
    config.clip.weights = "shapes_clip"  # shipped
    if name == "custom":  # its files are the user's
        write_custom(tmp_path / config.data.root)
        monkeypatch.chdir(tmp_path)
    dataset = dataset_info(config.data.dataset)
    spec, arguments = _inputs(config)
    assert set(arguments.batch) == set(spec.method.streams)
    assert load_vocabulary(config.ovs.vocabulary, dataset.num_classes, templates=config.ovs.templates).classes
    if name not in PUBLISHED:
        return
    state = arguments.state
    expected = _semivl_parameters() if config.method.name == "semivl" else _deeplab_parameters(dataset.num_classes)
    assert count_parameters(state.params) == expected
    assert set(state.labelers) == ({"snapshots"} if config.method.name == "prevmatch" else set())
    for snapshots in state.labelers.values():
        assert count_parameters(snapshots.params) == 8 * expected
    if config.method.name != "supervised":
        config.method.ood = "none"  # the one flag
        assert set(_inputs(config)[1].batch) == {"labeled", "unlabeled", "mix"}


@pytest.mark.slow
def test_every_published_row_takes_two_steps_shrunk():
    for name in PUBLISHED:
        losses = _two_steps(_shrunk(_load(name)).to_json(sort_keys=True))
        assert all(np.isfinite(loss) for loss in losses), name


def _shrunk(config: ConfigDict) -> ConfigDict:
    """The experiment with a tiny student, tiny crops and few classes, and without the paths of its files."""
    small = ConfigDict(config.to_dict())
    windows = config.method.name == "semivl"
    small.update_from_flattened_dict(
        {
            "batch_size": 2,
            "data.dataset": "shapes",
            "data.crop_size": 32 if windows else 33,
            "model.backbone": "clip_vit_shapes" if windows else "resnet_tiny",
            "clip.weights": "shapes_clip",
            "clip.vocabulary": "shapes",
            "train.steps": 2,
        }
    )
    for key in ("root", "labeled_split", "unlabeled_split"):
        del small.data[key]
    for key in ("vocabulary", "labels_dir"):
        del small.ovs[key]
    return small


@functools.cache
def _two_steps(config_json: str) -> list[float]:
    """Losses of two steps on random images; configs that are alike once shrunk are run once."""
    config = ConfigDict(json.loads(config_json))
    mesh = make_mesh(jax.devices()[:1])
    spec, arguments = _inputs(config)
    _, params, batch_stats = Functional.create(make_student(config, dataset_info(config.data.dataset)))
    state = TrainState.create(params, batch_stats, spec.optimizer, spec.labelers)
    state = jax.device_put(state, replicated(mesh))
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.integers(0, 2 if leaf.dtype == bool else 9, leaf.shape).astype(leaf.dtype)

    batch = shard_batch(jax.tree.map(draw, arguments.batch), mesh)
    step = make_train_step(spec, mesh)
    weights = {name: labeler.weights for name, labeler in spec.labelers.items()}
    losses = []
    for _ in range(2):
        state, metrics = step(state, batch, weights)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1
    return losses


def test_every_key_of_the_common_config_is_read():
    from configs import common

    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("semiovs_jax", "data_pipelines")
        for path in (FOLDER.parent / folder).rglob("*.py")
    )
    config = common.semiovs_unimatch()
    keys = [key for section in config.values() if hasattr(section, "keys") for key in section]
    # Splits are looked up by their stream's name.
    written = {key: "}_split" if key.endswith("_split") else f".{key}" for key in keys}
    unread = [key for key, how in written.items() if how not in sources and f'["{key}"]' not in sources]
    assert not unread


def _deeplab_parameters(num_classes: int) -> int:
    # The golden lists the reference's ResNet-50 student; ResNet-101 has 17 more bottlenecks in its third stage.
    published = Golden(golden_path("deeplab_r50_forward")).shapes
    running = ("running_mean", "running_var", "num_batches_tracked")
    sizes = {name: math.prod(shape) for name, shape in published.items() if not name.endswith(running)}
    bottleneck = sum(size for name, size in sizes.items() if name.startswith("backbone.layer3.1."))
    classes, channels, _, _ = published["classifier.weight"]
    return sum(sizes.values()) + 17 * bottleneck + (num_classes - classes) * (channels + 1)


def _semivl_parameters() -> int:
    """SemiVL's VLG head on CLIP ViT-B/16 at crops of 512, added up from the widths the paper and its code give."""

    def block(width: int, hidden: int) -> int:
        return 4 * (width + 1) * width + 2 * 2 * width + (width + 1) * hidden + (hidden + 1) * width

    def up(channels: int, skip: int, out: int) -> int:
        kept = channels - skip
        return (4 * channels + 1) * kept + 9 * channels * out + 9 * out * out + 2 * 2 * out

    width, embed, c = 768, 512, 128
    tokens = 16 * 16 * 3 * width + width + (1 + 32 * 32) * width
    backbone = tokens + 12 * block(width, 4 * width) + 2 * 2 * width + width * embed
    pyramid = (1 + 3 * 9 + 1 + 5) * c * c + 6 * 2 * c  # 1x1, three 3x3, pooled, projection; a normalization each
    skips = (9 * width + 1) * (32 + 16)
    head = (7 * 7 + 1) * c + pyramid + (embed + 1) * c + 2 * block(2 * c, 4 * c) + skips
    head += up(c, 32, 64) + up(64, 16, 32) + 9 * 32 + 1
    return backbone + head
