"""Exports the model of a run: python -m semiovs_jax.export --workdir=runs/voc92 --format=stablehlo --out=exported.

--format=stablehlo: one program with its weights, from images to labels, that JAX runs without this package; an example
is docs/serve.py. --format=onnx: one ONNX model, from images to labels, for ONNX Runtime; needs pip install
'semiovs-jax[onnx]'; an example is docs/serve_onnx.py. --format=safetensors: the weights with the names of the official
PyTorch code.

Without --config, the config is the run's own.
"""

from typing import Any

from absl import flags as absl_flags

from semiovs_jax.exporting import formats
from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.command import run_command


def main(flags: Any) -> None:
    """Exports the best (or latest) checkpoint in `flags.workdir` to `flags.out`."""
    from data_pipelines.files import as_path
    from semiovs_jax.exporting.model import read_model

    folder = as_path(flags.out, "--out")
    trained = read_model(flags.config, flags.workdir, flags.which)
    chosen = formats.find_format(flags.format)
    for path in chosen.write(folder, trained):
        print(f"wrote {path}")
    print(f"next: {chosen.following(folder)}")


if __name__ == "__main__":
    absl_flags.DEFINE_enum("format", None, formats.names(), "What to write.")
    absl_flags.DEFINE_string("out", None, "Folder to write to; created if missing.")
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    absl_flags.mark_flags_as_required(["format", "out"])
    run_command(main, run_config=saved_config.__file__, joins_processes=False)
