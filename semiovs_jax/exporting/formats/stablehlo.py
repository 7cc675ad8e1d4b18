"""One program with its weights, from images to labels, that JAX runs without this package.

The program is StableHLO, serialized by `jax.export`, for the CPU, CUDA and TPU. Programs are read by JAX of the same
version and of versions up to half a year newer.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from data_pipelines.files import replace_file
from semiovs_jax.augment import as_float, normalize
from semiovs_jax.exporting.manifest import write_manifest
from semiovs_jax.exporting.model import TrainedModel

PLATFORMS = ("cpu", "cuda", "tpu")

_FILE = "model.stablehlo"

_logger = logging.getLogger(__name__)


def write(folder: Path, trained: TrainedModel) -> list[Path]:
    """Writes model.stablehlo and manifest.json; see `Format`."""
    exported = export_program(trained)
    if trained.model.student.fixed_size:
        side = trained.config.data.crop_size
        _logger.warning(
            "%s takes images of %d x %d px only; resize other images, or average the logits of windows as evaluation "
            "does",
            trained.config.model.backbone,
            side,
            side,
        )
    replace_file(folder / _FILE, bytes(exported.serialize()))
    facts = {
        "format": "stablehlo",
        "file": _FILE,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "size_multiple": trained.model.student.size_multiple,
        "inputs": {"image": {**_describe(exported.in_avals[0]), "values": "RGB, 0..255"}},
        "outputs": {
            "label": {**_describe(exported.out_avals[0]), "values": "index of the class"},
            "confidence": {**_describe(exported.out_avals[1]), "values": "probability of that class"},
        },
    }
    return [folder / _FILE, write_manifest(folder, trained, facts)]


def export_program(trained: TrainedModel) -> jax.export.Exported:
    """The function from uint8 images [N, H, W, 3] to labels, uint8 [N, H, W], and their confidence, float32 [N, H, W].

    N, H and W are free; sides are multiples of the student's `size_multiple`. A student of fixed size takes images of
    the training crop's size.
    """
    function, student = trained.model.function, trained.model.student

    def predict(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = normalize(as_float(image))
        logits, _ = function.apply(trained.params, trained.batch_stats, x, train=False)
        probabilities = jax.nn.softmax(logits)
        return jnp.argmax(logits, -1).astype(jnp.uint8), probabilities.max(-1).astype(jnp.float32)

    crop, multiple = trained.config.data.crop_size, student.size_multiple
    sides = f"{crop}, {crop}" if student.fixed_size else f"{multiple}*h, {multiple}*w"
    shape = jax.export.symbolic_shape(f"n, {sides}, 3")
    return jax.export.export(jax.jit(predict), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))


def _describe(array: Any) -> dict[str, Any]:
    """Shape and dtype; a size that is free is a string."""
    return {
        "shape": [str(side) if jax.export.is_symbolic_dim(side) else side for side in array.shape],
        "dtype": array.dtype.name,
    }
