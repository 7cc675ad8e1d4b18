"""Every config file resolves, is locked, and describes a run that can be built."""

import ast
import importlib.util
import math
from pathlib import Path

import pytest
from flax import nnx

from data_pipelines.datasets import load_dataset
from semiovs_jax.models import Functional
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.recipe import batch_structs, make_recipe, make_student
from semiovs_jax.train_state import count_parameters
from tests.custom_tree import write_custom
from tests.golden import Golden, golden_path

FOLDER = Path(__file__).parents[1] / "configs"
NOT_EXPERIMENTS = {"__init__", "common"}
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in NOT_EXPERIMENTS)


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_resolves_and_says_how_it_is_run(path: Path):
    assert _load(path).is_locked
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"--config=configs/{path.name}" in docstring
    for word in ("Hardware:", "Time", "mIoU"):
        assert word in docstring


@pytest.mark.parametrize("path", [p for p in FILES if not p.stem.startswith("ovs_")], ids=lambda path: path.stem)
def test_its_run_can_be_built(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = _load(path)
    if path.stem == "custom":  # its files are the user's
        write_custom(tmp_path / config.data.root)
        monkeypatch.chdir(tmp_path)
    student = nnx.eval_shape(lambda: make_student(config))
    recipe = make_recipe(config, student, steps=10)
    assert set(batch_structs(config, recipe.method)) == set(recipe.method.streams)
    dataset = load_dataset(config.data.dataset)
    assert load_vocabulary(config.ovs.vocabulary, dataset.num_classes, templates=config.ovs.templates).classes


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


def test_voc92_has_the_published_number_of_parameters():
    student = nnx.eval_shape(lambda: make_student(_load(FOLDER / "voc92.py")))
    # The golden lists the reference's ResNet-50 student; ResNet-101 has 17 more bottlenecks in its third stage.
    published = Golden(golden_path("deeplab_r50_forward")).shapes
    running = ("running_mean", "running_var", "num_batches_tracked")
    sizes = {name: math.prod(shape) for name, shape in published.items() if not name.endswith(running)}
    bottleneck = sum(size for name, size in sizes.items() if name.startswith("backbone.layer3.1."))
    assert count_parameters(Functional.create(student)[1]) == sum(sizes.values()) + 17 * bottleneck
