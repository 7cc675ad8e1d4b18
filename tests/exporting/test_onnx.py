"""The ONNX model predicts in ONNX Runtime what this package predicts, and is not written where it does not."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from semiovs_jax import export
from semiovs_jax.benchmarks.claims.rows import ROWS
from semiovs_jax.evaluated import open_model
from semiovs_jax.exporting.formats import onnx as onnx_format
from semiovs_jax.exporting.model import TrainedModel, read_model
from semiovs_jax.exporting.program import Prediction, predict_function
from semiovs_jax.models.deeplab import student as deeplab
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import shrunk_demo
from tests.exporting.serving import serve
from tests.saved_run import made_up

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("jax2onnx", reason="needs the extra onnx")

SERVE = Path(__file__).parents[2] / "docs" / "serve_onnx.py"
SHAPES = dataset_info("shapes")


@pytest.fixture(scope="module")
def printed(run: Path) -> str:
    """What the command prints."""
    flags = [f"--workdir={run}", "--format=onnx", f"--out={run / 'onnx'}"]
    done = subprocess.run(
        [sys.executable, "-m", "semiovs_jax.export", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(run: Path, printed: str) -> Path:
    return run / "onnx"


def _run(model: bytes | Path) -> Callable[[np.ndarray], Prediction]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda image: Prediction(*session.run(list(Prediction._fields), {"image": image}))


def _assert_same(found: Prediction, expected: Prediction) -> None:
    expected = Prediction(*map(np.asarray, expected))
    scale = max(1, np.abs(expected.logits).max())
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4 * scale, rtol=0)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4, rtol=0)
    assert [array.dtype for array in found] == [np.uint8, np.float32, np.float32]
    second, first = np.moveaxis(np.sort(expected.logits)[..., -2:], -1, 0)
    tied = first - second < 1e-4 * scale
    np.testing.assert_array_equal(np.where(tied, expected.label, found.label), expected.label)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)


def _made_up(config: Any) -> TrainedModel:
    model = open_model(config, make_mesh(jax.devices()[:1]))
    params, batch_stats = model.weights(model.target)
    return TrainedModel(config, "", model, made_up(params, 0), made_up(batch_stats, 1), {})


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.long])])
def test_predictions_of_any_number_of_images_of_any_size(run: Path, exported: Path, count: int):
    trained = read_model(get_config(str(run)), str(run))
    expected, found = jax.jit(predict_function(trained)), _run(exported / "model.onnx")
    rng = np.random.default_rng(0)
    shapes = [(3, 1, 1), (1, 7, 5), (2, 64, 32), *((1, *rng.integers(8, 97, 2).tolist()) for _ in range(count - 3))]
    labels = set()
    for shape in shapes:
        image = _random(*shape)
        _assert_same(found(image), expected(image))
        labels |= set(np.unique(found(image).label).tolist())
    assert len(labels) > 1  # not a constant


def test_the_command_ends_with_the_one_that_serves(printed: str, exported: Path):
    assert printed.splitlines() == [
        f"wrote {exported / 'model.onnx'}",
        f"wrote {exported / 'manifest.json'}",
        f"next: python docs/serve_onnx.py {exported} IMAGE OUT.png",
    ]


def test_the_manifest_says_what_it_is(exported: Path):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["classes"] == list(SHAPES.classes)
    assert manifest["inputs"]["image"]["shape"] == ["n", "h", "w", 3]
    shapes = {name: output["shape"] for name, output in manifest["outputs"].items()}
    assert shapes == {
        "label": ["n", "h", "w"],
        "confidence": ["n", "h", "w"],
        "logits": ["n", "h", "w", SHAPES.num_classes],
    }
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    assert {output.name: output.shape for output in session.get_outputs()} == shapes
    assert manifest["converted_with"]["onnxruntime"] == onnxruntime.__version__


def test_the_example_serves_it_without_this_package_and_jax(run: Path, exported: Path, tmp_path: Path):
    image, shown = serve(SERVE, exported, tmp_path, without=("semiovs_jax", "data_pipelines", "jax"))
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.mode, picture.size) == ("P", (50, 41))
        label = _run(exported / "model.onnx")(np.asarray(image)[None]).label[0]
        np.testing.assert_array_equal(np.asarray(picture), label)
    assert all(SHAPES.classes[index] in shown for index in np.unique(label))


@pytest.mark.long
@pytest.mark.slow
def test_a_resnet50_in_bfloat16_is_exported_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    narrow = Architecture((3, 4, 6, 3), stem_widths=(8, 8, 16), widths=(8, 8, 16, 16), channels=16)
    monkeypatch.setitem(deeplab.STUDENTS, "resnet50", narrow)
    changes = {"model.backbone": "resnet50", "model.dtype": "bfloat16", "method.name": "supervised"}
    trained = onnx_format.in_float32(_made_up(shrunk_demo(tmp_path, **changes, **{"method.ood": "none"})))
    expected = jax.jit(predict_function(trained))
    found = _run(onnx_format.convert(trained).SerializeToString())
    for shape in ((1, 65, 97), (2, 33, 40)):
        _assert_same(found(_random(*shape)), expected(_random(*shape)))


@pytest.mark.long
@pytest.mark.slow
def test_a_student_of_fixed_size_takes_one_image_of_the_training_crop(tmp_path: Path):
    trained = _made_up(shrunk_demo(tmp_path, **{**ROWS["SemiVL"].changes, "data.crop_size": 32}))
    model = onnx_format.convert(trained).SerializeToString()
    assert onnxruntime.InferenceSession(model).get_inputs()[0].shape == [1, 32, 32, 3]
    image = _random(1, 32, 32)
    _assert_same(_run(model)(image), jax.jit(predict_function(trained))(image))


def test_a_model_that_differs_is_refused(run: Path, exported: Path):
    trained = read_model(get_config(str(run)), str(run))
    other = trained._replace(params=made_up(trained.params, seed=9))
    model, images = (exported / "model.onnx").read_bytes(), [_random(1, 9, 9)]
    onnx_format.check_predictions(model, jax.jit(predict_function(trained)), images, "model.onnx")
    with pytest.raises(InputError, match=r"model.onnx: for images \[1, 9, 9, 3\], ONNX Runtime .* differ: logits by"):
        onnx_format.check_predictions(model, jax.jit(predict_function(other)), images, "model.onnx")


def test_what_cannot_be_converted_is_refused_with_the_reason(run: Path, monkeypatch: pytest.MonkeyPatch):
    trained = read_model(get_config(str(run)), str(run))
    monkeypatch.setattr("jax2onnx.to_onnx", _unsupported)
    with pytest.raises(InputError, match=r"cannot convert resnet_tiny: NotImplementedError: no plugin .*=stablehlo"):
        onnx_format.convert(trained)


def _unsupported(*_: Any, **__: Any) -> None:
    raise NotImplementedError("no plugin for it")


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    flags = SimpleNamespace(
        config=get_config(str(run)), workdir=str(run), which="best", format="onnx", out=str(run / "none")
    )
    with pytest.raises(InputError, match=r"needs jax2onnx; run pip install 'semiovs-jax\[onnx\]'"):
        export.main(flags)
    assert not (run / "none").exists()
