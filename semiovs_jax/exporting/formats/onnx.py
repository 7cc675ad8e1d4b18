"""One ONNX model with its weights, from images to labels, for ONNX Runtime and other runtimes.

jax2onnx converts it. Before it is written, ONNX Runtime runs it on a few images, and its outputs are compared with
those of this package. It computes in float32, whatever the dtype and precision of the run.
"""

import contextlib
import importlib
import io
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from semiovs_jax.evaluated import open_model
from semiovs_jax.exporting.manifest import write_manifest
from semiovs_jax.exporting.model import TrainedModel
from semiovs_jax.exporting.portable import portable
from semiovs_jax.exporting.program import (
    VALUES,
    Prediction,
    describe,
    image_struct,
    predict_function,
    warn_of_fixed_size,
)
from semiovs_jax.runtime.sharding import make_mesh

_FILE = "model.onnx"
_PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
_TOLERANCE = 1e-4  # of logits, as a share of the largest one where that is above 1; of confidences
_CHECKED = ((2, 33, 48), (1, 64, 41))  # images, and their sides as multiples of `size_multiple`


def write(folder: Path, trained: TrainedModel) -> list[Path]:
    """Writes model.onnx and manifest.json; see `Format`."""
    _require_packages()
    trained = in_float32(trained)
    model = convert(trained)
    predict, shapes = jax.jit(predict_function(trained)), checked_shapes(trained)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    serialized = model.SerializeToString()
    check_predictions(serialized, predict, images, str(folder / _FILE))
    warn_of_fixed_size(trained)
    replace_file(folder / _FILE, serialized)
    image = image_struct(trained, _count(trained))
    outputs = zip(Prediction._fields, jax.eval_shape(predict_function(trained), image), VALUES, strict=True)
    facts = {
        "format": "onnx",
        "file": _FILE,
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "converted_with": {name: metadata.version(name) for name in _PACKAGES},
        "checked_on": [list(shape) for shape in shapes],
        "size_multiple": trained.model.student.size_multiple,
        "inputs": {"image": describe(image, "RGB, 0..255")},
        "outputs": {name: describe(array, values) for name, array, values in outputs},
    }
    return [folder / _FILE, write_manifest(folder, trained, facts)]


def following(folder: Path) -> str:
    """See `Format`."""
    return shlex.join(["python", "docs/serve_onnx.py", str(folder), "IMAGE", "OUT.png"])


def in_float32(trained: TrainedModel) -> TrainedModel:
    """The same model computed in float32 with exact products: ONNX Runtime has no bfloat16 convolutions on the CPU."""
    config = trained.config.copy_and_resolve_references().unlock()
    config.model.update(dtype="float32", matmul_precision="highest")
    return trained._replace(model=open_model(config.lock(), make_mesh(jax.local_devices()[:1])))


def convert(trained: TrainedModel) -> Any:
    """The `onnx.ModelProto` of `predict_function`, with the input "image" and the fields of `Prediction` as outputs.

    Raises:
      InputError: jax2onnx cannot convert the student.
    """
    image = image_struct(trained, _count(trained))
    traced = jax.make_jaxpr(predict_function(trained))(image)
    try:
        with _silent():
            return importlib.import_module("jax2onnx").to_onnx(
                portable(traced),
                [image],
                model_name=trained.config.model.backbone,
                input_names=["image"],
                output_names=list(Prediction._fields),
            )
    except Exception as error:  # whatever a converter of someone else raises
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"--format=onnx: jax2onnx {metadata.version('jax2onnx')} cannot convert {trained.config.model.backbone}: "
            f"{type(error).__name__}: {reason}; use --format=stablehlo"
        ) from error


def checked_shapes(trained: TrainedModel) -> list[tuple[int, int, int, int]]:
    """Shapes of the images on which a model is checked before it is written."""
    if trained.model.student.fixed_size:
        crop = trained.config.data.crop_size
        return [(1, crop, crop, 3)]
    multiple = trained.model.student.size_multiple
    return [(count, height * multiple, width * multiple, 3) for count, height, width in _CHECKED]


def check_predictions(
    model: bytes, predict: Callable[[Any], Prediction], images: Sequence[np.ndarray], name: str
) -> None:
    """Compares what ONNX Runtime computes with what this package computes.

    Args:
      model: serialized.
      predict: of this package.
      images: uint8 [N, H, W, 3] each.
      name: of the model, for messages.

    Raises:
      InputError: logits or confidences differ by more than 1e-4, or labels where no two classes are tied.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    faults = []
    for image in images:
        found = Prediction(*session.run(list(Prediction._fields), {"image": image}))
        if fault := _difference(found, Prediction(*map(np.asarray, predict(image)))):
            faults.append(
                f"{name}: for images {list(image.shape)}, ONNX Runtime {onnxruntime.__version__} and this package "
                f"differ: {fault}; nothing is written; use another version of jax2onnx, or --format=stablehlo"
            )
    if faults:
        raise InputError(*faults)


def _difference(found: Prediction, expected: Prediction) -> str:
    """What differs beyond rounding; "" if nothing does."""
    scale = max(1.0, float(np.abs(expected.logits).max()))
    for name, share in (("logits", scale), ("confidence", 1.0)):
        ours, theirs = getattr(expected, name), getattr(found, name)
        if theirs.shape != ours.shape:
            return f"{name} {list(theirs.shape)}, expected {list(ours.shape)}"
        worst = float(np.abs(theirs - ours).max())
        if not worst <= _TOLERANCE * share:
            return f"{name} by {worst:.3g}, expected at most {_TOLERANCE * share:.3g}"
    chosen = np.take_along_axis(expected.logits, found.label[..., None].astype(int), -1)[..., 0]
    wrong = expected.logits.max(-1) - chosen > 2 * _TOLERANCE * scale
    return f"labels of {int(wrong.sum())} pixels" if wrong.any() else ""


def _count(trained: TrainedModel) -> str:
    # jax2onnx cannot pad a batch of unknown size, which the head of SemiVL does.
    return "1" if trained.model.student.fixed_size else "n"


def _require_packages() -> None:
    try:
        for name in _PACKAGES:
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"--format=onnx needs {error.name}; run pip install 'semiovs-jax[onnx]'") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drops what the converter prints and logs below the level of errors: traces of its own development."""
    levels = {name: logging.getLogger(name).level for name in ("jax2onnx", "onnx_ir")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
