"""Predicts the class of every pixel of images.

    python -m semiovs_jax.predict --workdir=runs/voc92 --source=photos --out=predictions

--source is an image, a folder, a text file with one path a line, a zip or tar archive, a video, or "-": paths on stdin.
--out has, for each image, the label as a PNG of class indices, the confidence, and the classes in their colors over the
image; and contact_sheet.html, least confident first. What exists is not predicted again. Images that cannot be used are
named at the end; the exit status is 1 then.

Without --config, the config is the run's own. Its values can be changed: --config.eval.window=512. The probabilities
of several --scales, and of mirrored images with --flip, are averaged.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from data_pipelines.errors import InputError
from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.command import run_command


def main(flags: Any) -> None:
    """Predicts `flags.source` with the best (or latest) checkpoint in `flags.workdir`."""
    import jax

    from semiovs_jax.evaluation.views import Views
    from semiovs_jax.prediction.contact_sheet import FILE_NAME
    from semiovs_jax.prediction.job import predict_pictures
    from semiovs_jax.prediction.model import Model
    from semiovs_jax.prediction.outputs import Outputs
    from semiovs_jax.prediction.sources import STDIN, open_source

    pictures = open_source(flags.source)
    seen = flags.config.eval
    seen.scales = seen.scales if flags.scales is None else _numbers(flags.scales)
    seen.flip = seen.flip if flags.flip is None else flags.flip
    model = Model(flags.config, flags.workdir, flags.which, jax.local_devices())
    outputs = Outputs(flags.out, model.dataset)
    source = STDIN if flags.source == STDIN else str(Path(flags.source).expanduser().absolute())
    outputs.begin({"source": source, **model.identity})
    facts = {"run": flags.workdir, "step": model.step, "source": flags.source, "views": Views.create(seen).describe()}
    threads = flags.config.data.num_threads
    done = predict_pictures(pictures, model.predictor, outputs, model.dataset, num_threads=threads, facts=facts)
    for name, fault in done.bad.items():
        print(f"not predicted: {name}: {fault}", file=sys.stderr)
    print(f"{done.predicted} images predicted, {done.skipped} were there, {len(done.bad)} cannot be used")
    print(f"{outputs.folder}: labels/, confidence/, overlay/, predictions.csv; open {outputs.folder / FILE_NAME}")
    if done.bad:
        print("fix the images that are named above, then run the same command: it predicts them alone", file=sys.stderr)
        sys.exit(1)


def _numbers(values: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except ValueError as error:
        raise InputError(f"--scales={','.join(values)}: {error}; give numbers, such as 0.5,1,1.5") from error


if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    absl_flags.DEFINE_string("source", None, "An image, a folder, a list of paths, an archive, a video, or '-': stdin.")
    absl_flags.DEFINE_string("out", None, "Folder of the predictions; created if missing.")
    absl_flags.DEFINE_list("scales", None, "Factors of size, such as 0.5,1,1.5, in place of config.eval.scales.")
    absl_flags.DEFINE_bool("flip", None, "Sees mirrored images, too, in place of config.eval.flip.")
    absl_flags.mark_flags_as_required(["source", "out"])
    kept = "the predictions that are written are kept; the same command makes the others"
    alone = "split --source, and start one command for each part"
    run_command(main, run_config=saved_config.__file__, kept=kept, alone=alone)
