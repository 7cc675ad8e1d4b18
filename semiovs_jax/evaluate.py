"""Evaluates a checkpoint of a run: python -m semiovs_jax.evaluate --workdir=runs/voc92.

Prints the table of per-class IoU and writes a report to WORKDIR/evaluation/STEP, or to --out: report.html, eval.json,
confusion.csv, confusion.png and images.csv. Without --config, the config is the run's own. Its values can be changed:
--config.eval.window=512 --config.eval.stride=426 evaluates in windows, --config.eval.scales=0.75,1,1.25
--config.eval.flip averages the probabilities of several scales and of mirrored images.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import ml_collections
from absl import flags as absl_flags

from data_pipelines.files import as_path
from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import run_command, set_up_process
from semiovs_jax.runtime.program import other_command


def main(flags: Any) -> None:
    """Evaluates the best (or latest) checkpoint in `flags.workdir`, prints the table and writes the report."""
    import jax

    from semiovs_jax.reporting.evaluation_report import evaluate_checkpoint, open_checkpoint, write_evaluation
    from semiovs_jax.reporting.table import format_table
    from semiovs_jax.runtime.workdir import check_writable

    checkpoint = open_checkpoint(flags.config, flags.workdir, flags.which)
    folder = checkpoint.run / "evaluation" / str(checkpoint.step)
    if flags.out:
        folder = as_path(flags.out, "--out")
    if jax.process_index() == 0:
        check_writable(folder, "--out")
    evaluated = evaluate_checkpoint(checkpoint)
    if jax.process_index() == 0:
        record = evaluated.record()
        print(format_table({evaluated.title: record}, record["protocol"]))
        print(f"boundary mIoU {100 * record['boundary_miou']:.2f} %, calibration error {100 * record['ece']:.2f} %")
        following = other_command("predict", f"--workdir={flags.workdir}", "--source=IMAGES", "--out=FOLDER")
        logging.getLogger(__name__).info("wrote %s\nnext: %s", write_evaluation(folder, evaluated), following)


def evaluate(
    run: str | Path, which: Literal["best", "latest"] = "best", config: ml_collections.ConfigDict | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on its validation split.

    Args:
      run: workdir of the run, or the directory of one checkpoint in it.
      which: "best" by mIoU (the latest if none was evaluated) or "latest".
      config: the run's own if None.

    Returns:
      The content of eval.json: step, miou, miou_present, pixel_accuracy (fractions in 0..1), iou by class name (None
      for absent classes), further measures, and protocol.

    Raises:
      InputError: something a person has to fix.
    """
    set_up_process()
    from semiovs_jax.reporting.evaluation_report import evaluate_checkpoint, open_checkpoint

    config = saved_config.get_config(str(run)) if config is None else config
    return evaluate_checkpoint(open_checkpoint(config, run, which)).record()


make_callable(__name__, evaluate)

if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    absl_flags.DEFINE_string("out", None, "Folder of the report; WORKDIR/evaluation/STEP if left out.")
    kept = "the report is not complete; the same command writes it again"
    run_command(main, run_config=saved_config.__file__, kept=kept)
