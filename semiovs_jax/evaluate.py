"""Evaluates a student against labels of the images' own sizes.

    python -m semiovs_jax.evaluate --config=... --workdir=runs/voc92

The references evaluate one image at a time: whole (`evaluate.py`, mode "original"), or, SemiVL's, with the short side
at 512 and in sliding windows (`third_party/unimatch/supervised.py`, mode "zegclip_sliding_window"). Here images share
a few padded shapes, and the logits of every pixel are those of the unpadded image.
"""

from typing import Any

import jax
from absl import flags as absl_flags
from flax import nnx

from data_pipelines.datasets import load_dataset
from data_pipelines.pipeline import validation_records
from semiovs_jax.checkpoints.checkpointer import restore_weights
from semiovs_jax.evaluation.evaluator import Evaluator
from semiovs_jax.models import Functional
from semiovs_jax.recipe import make_student
from semiovs_jax.reporting.table import format_table, scores_record
from semiovs_jax.runtime.command import run_command
from semiovs_jax.runtime.sharding import make_mesh, replicated


def main(flags: Any) -> None:
    """Evaluates the best (or latest) checkpoint in `flags.workdir` and prints the table."""
    config = flags.config
    mesh = make_mesh()
    dataset = load_dataset(config.data.dataset)
    module = nnx.eval_shape(lambda: make_student(config))
    student, params, batch_stats = Functional.create(module)
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        {"params": params, "batch_stats": batch_stats},
    )
    restored = restore_weights(flags.workdir, weights, flags.which)
    records = validation_records(config.data)
    evaluator = Evaluator(student, records, dataset, config.eval, mesh, size_multiple=module.size_multiple)
    scores = evaluator.run(restored.state["params"], restored.state["batch_stats"])
    record = {"step": restored.meta["step"], **scores_record(scores, dataset.classes)}
    if jax.process_index() == 0:
        print(format_table(record, record, evaluator.protocol))


if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    run_command(main)
