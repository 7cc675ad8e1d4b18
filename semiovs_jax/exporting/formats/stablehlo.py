"""One program with its weights, from images to labels, that JAX runs without this package.

The program is StableHLO, serialized by `jax.export`, for the CPU, CUDA and TPU. Programs are read by JAX of the same
version and of versions up to half a year newer.
"""

import shlex
from pathlib import Path

import jax
import jax.export

from data_pipelines.files import replace_file
from semiovs_jax.exporting.manifest import write_manifest
from semiovs_jax.exporting.model import TrainedModel
from semiovs_jax.exporting.program import VALUES, describe, image_struct, predict_function, warn_of_fixed_size

PLATFORMS = ("cpu", "cuda", "tpu")

_FILE = "model.stablehlo"


def write(folder: Path, trained: TrainedModel) -> list[Path]:
    """Writes model.stablehlo and manifest.json; see `Format`."""
    exported = export_program(trained)
    warn_of_fixed_size(trained)
    replace_file(folder / _FILE, bytes(exported.serialize()))
    facts = {
        "format": "stablehlo",
        "file": _FILE,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "size_multiple": trained.model.student.size_multiple,
        "inputs": {"image": describe(exported.in_avals[0], "RGB, 0..255")},
        "outputs": {
            "label": describe(exported.out_avals[0], VALUES.label),
            "confidence": describe(exported.out_avals[1], VALUES.confidence),
        },
    }
    return [folder / _FILE, write_manifest(folder, trained, facts)]


def following(folder: Path) -> str:
    """See `Format`."""
    return shlex.join(["python", "docs/serve.py", str(folder), "IMAGE", "OUT.png"])


def export_program(trained: TrainedModel) -> jax.export.Exported:
    """The function from uint8 images [N, H, W, 3] to labels, uint8 [N, H, W], and their confidence, float32 [N, H, W].

    N, H and W are free; sides are multiples of the student's `size_multiple`. A student of fixed size takes images of
    the training crop's size.
    """
    predict = predict_function(trained)
    program = jax.jit(lambda image: predict(image)[:2])
    return jax.export.export(program, platforms=PLATFORMS)(image_struct(trained))
