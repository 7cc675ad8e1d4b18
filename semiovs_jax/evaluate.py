"""Evaluates a checkpoint of a run: python -m semiovs_jax.evaluate --workdir=runs/voc92.

Without --config, the config is the run's own. Its values can be changed: --config.eval.window=512.
"""

from pathlib import Path
from typing import Any, Literal

import ml_collections
from absl import flags as absl_flags

from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import run_command, set_up_process


def main(flags: Any) -> None:
    """Evaluates the best (or latest) checkpoint in `flags.workdir` and prints the table."""
    import jax

    from semiovs_jax.reporting.table import format_table

    record = evaluate(flags.workdir, flags.which, flags.config)
    if jax.process_index() == 0:
        print(format_table({f"step {record['step']}": record}, record["protocol"]))


def evaluate(
    run: str | Path, which: Literal["best", "latest"] = "best", config: ml_collections.ConfigDict | None = None
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on its validation split.

    Args:
      run: workdir of the run, or the directory of one checkpoint in it.
      which: "best" by mIoU (the latest if none was evaluated) or "latest".
      config: the run's own if None.

    Returns:
      step, miou, miou_present, pixel_accuracy (fractions in 0..1), iou by class name (None for absent classes), and
      protocol.

    Raises:
      InputError: something a person has to fix.
    """
    set_up_process()
    from semiovs_jax.checkpoints.checkpointer import restore_weights
    from semiovs_jax.experiment import open_evaluation
    from semiovs_jax.reporting.table import scores_record
    from semiovs_jax.runtime.sharding import make_mesh

    evaluation = open_evaluation(config or saved_config.get_config(str(run)), make_mesh())
    restored = restore_weights(run, evaluation.target, which)
    scores = evaluation.evaluator.run(*evaluation.weights(restored.state))
    record = scores_record(scores, evaluation.dataset.classes)
    return {"step": int(restored.meta["step"]), **record, "protocol": evaluation.evaluator.protocol}


make_callable(__name__, evaluate)

if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    run_command(main, run_config=saved_config.__file__)
