"""The exported program predicts what evaluation predicts, without this package."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from semiovs_jax import augment, export
from semiovs_jax.benchmarks.claims.rows import ROWS
from semiovs_jax.evaluated import open_model
from semiovs_jax.exporting.formats.stablehlo import export_program
from semiovs_jax.exporting.model import TrainedModel, read_model
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.runtime.provenance import config_sha256
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import shrunk_demo
from tests.exporting.serving import serve

SERVE = Path(__file__).parents[2] / "docs" / "serve.py"
SHAPES = dataset_info("shapes")
TIE = 1e-5  # difference of two probabilities that rounding may exchange


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    flags = SimpleNamespace(
        config=get_config(str(run)), workdir=str(run), which="best", format="stablehlo", out=str(run / "exported")
    )
    export.main(flags)
    return run / "exported"


def _sizes(count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(0)
    return [(1, 1), (7, 5), (64, 32), *map(tuple, rng.integers(8, 97, (count - 3, 2)).tolist())]


def _ours(trained: TrainedModel, images: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Label, confidence, and whether two classes are tied, as evaluation computes them: padded to one shape."""
    batch = np.zeros((len(images), 96, 96, 3), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    size = np.array([image.shape[:2] for image in images], np.int32)

    @jax.jit
    def predict(batch: jax.Array, size: jax.Array) -> jax.Array:
        x = augment.normalize(augment.as_float(batch))
        logits, _ = trained.model.function.apply(trained.params, trained.batch_stats, x, train=False, size=size)
        return jax.nn.softmax(logits)

    for probabilities, (height, width) in zip(np.asarray(predict(batch, size)), size, strict=True):
        own = probabilities[:height, :width]
        second, first = np.moveaxis(np.sort(own)[..., -2:], -1, 0)
        yield own.argmax(-1), first, first - second < TIE


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_predictions_are_those_of_evaluation_at_every_size(run: Path, exported: Path, count: int):
    trained = read_model(get_config(str(run)), str(run))
    program = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in _sizes(count)]
    found = set()
    for image, (label, confidence, tied) in zip(images, _ours(trained, images), strict=True):
        got_label, got_confidence = program.call(image[None])
        assert (got_label.dtype, got_confidence.dtype) == (jnp.uint8, jnp.float32)
        np.testing.assert_allclose(got_confidence[0], confidence, atol=1e-4, rtol=0)
        np.testing.assert_array_equal(np.where(tied, label, got_label[0]), label)
        found |= set(np.unique(label).tolist())
    assert len(found) > 1  # not a constant


def test_it_has_a_form_for_every_platform_and_batches(exported: Path):
    program = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    label, _ = program.call(np.zeros((3, 9, 17, 3), np.uint8))
    assert label.shape == (3, 9, 17)


def test_the_manifest_says_what_it_is(run: Path, exported: Path):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["classes"] == list(SHAPES.classes)
    assert manifest["palette"] == SHAPES.palette[: SHAPES.num_classes].tolist()
    assert manifest["inputs"]["image"]["shape"] == ["n", "h", "w", 3]
    assert manifest["outputs"]["label"] | {"values": ""} == {"shape": ["n", "h", "w"], "dtype": "uint8", "values": ""}
    assert manifest["outputs"]["confidence"]["dtype"] == "float32"
    assert (manifest["step"], manifest["miou"]) == (2, 0.5)
    assert manifest["config_sha256"] == config_sha256(json.loads((run / "config.json").read_text()))
    assert manifest["run"] == str(run)
    assert manifest["exported_with"]["jax"] == jax.__version__
    assert manifest["date"].startswith("20")


def test_the_example_serves_it_without_this_package(run: Path, exported: Path, tmp_path: Path):
    image, printed = serve(SERVE, exported, tmp_path, without=("semiovs_jax", "data_pipelines"))
    trained = read_model(get_config(str(run)), str(run))
    ((label, _, tied),) = _ours(trained, [np.asarray(image)])
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.mode, picture.size) == ("P", (50, 41))
        np.testing.assert_array_equal(np.where(tied, label, np.asarray(picture)), label)
        assert picture.getpalette()[: 3 * SHAPES.num_classes] == SHAPES.palette[: SHAPES.num_classes].ravel().tolist()
    assert all(SHAPES.classes[index] in printed for index in np.unique(label))


def test_a_student_of_fixed_size_has_a_fixed_size(tmp_path: Path):
    config = shrunk_demo(tmp_path, **{**ROWS["SemiVL"].changes, "data.crop_size": 32})
    model = open_model(config, make_mesh(jax.devices()[:1]))
    weights = model.weights(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.target))
    trained = TrainedModel(config, str(tmp_path), model, *weights, {})
    assert [str(side) for side in export_program(trained).in_avals[0].shape] == ["n", "32", "32", "3"]
