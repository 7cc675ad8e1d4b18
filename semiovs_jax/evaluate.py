"""Evaluates a checkpoint of a run: python -m semiovs_jax.evaluate --workdir=runs/voc92.

Without --config, the config is the run's own. Its values can be changed: --config.eval.window=512.
"""

from typing import Any

from absl import flags as absl_flags

from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.command import run_command


def main(flags: Any) -> None:
    """Evaluates the best (or latest) checkpoint in `flags.workdir` and prints the table."""
    import jax

    from semiovs_jax.checkpoints.checkpointer import restore_weights
    from semiovs_jax.experiment import open_evaluation
    from semiovs_jax.reporting.table import format_table, scores_record
    from semiovs_jax.runtime.sharding import make_mesh

    evaluation = open_evaluation(flags.config, make_mesh())
    restored = restore_weights(flags.workdir, evaluation.target, flags.which)
    scores = evaluation.evaluator.run(*evaluation.weights(restored.state))
    record = scores_record(scores, evaluation.dataset.classes)
    if jax.process_index() == 0:
        print(format_table({f"step {restored.meta['step']}": record}, evaluation.evaluator.protocol))


if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    run_command(main, run_config=saved_config.__file__)
