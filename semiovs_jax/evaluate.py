"""Evaluates a checkpoint of a run: python -m semiovs_jax.evaluate --workdir=runs/voc92.

Prints the table of per-class IoU and writes a report to WORKDIR/evaluation/STEP, or to --out: report.html, eval.json,
confusion.csv, confusion.png and images.csv. Without --config, the config is the run's own. Its values can be changed:
--config.eval.window=512.
"""

import datetime
import logging
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from data_pipelines.files import local_path
from semiovs_jax.runs import saved_config
from semiovs_jax.runtime.command import run_command


def main(flags: Any) -> None:
    """Evaluates the best (or latest) checkpoint in `flags.workdir`, prints the table and writes the report."""
    import jax

    from semiovs_jax.checkpoints.checkpointer import find_checkpoints, name_checkpoint, restore_weights
    from semiovs_jax.evaluation.measures import measure
    from semiovs_jax.experiment import open_evaluation
    from semiovs_jax.reporting.evaluation_report import Evaluated, write_evaluation
    from semiovs_jax.reporting.metrics_log import read_records
    from semiovs_jax.reporting.table import format_table
    from semiovs_jax.runtime import provenance
    from semiovs_jax.runtime.sharding import make_mesh
    from semiovs_jax.runtime.workdir import check_writable

    evaluation = open_evaluation(flags.config, make_mesh())
    directory, _ = find_checkpoints(flags.workdir)
    restored = restore_weights(flags.workdir, evaluation.target, flags.which)
    step, run = restored.meta["step"], Path(directory).parent
    writes = jax.process_index() == 0
    if writes:
        folder = local_path(flags.out, "--out") if flags.out else run / "evaluation" / str(step)
        check_writable(folder, "--out")
    predictions = evaluation.evaluator.predictions(*evaluation.weights(restored.state))
    measures = measure(predictions, evaluation.dataset)
    if not writes:
        return
    facts = {
        "step": step,
        "checkpoint": str(directory / str(step)),
        "protocol": evaluation.evaluator.protocol,
        "dataset": evaluation.dataset.name,
        "config_sha256": provenance.config_sha256(provenance.config_as_json(flags.config)),
        "run_config_sha256": restored.meta.get("config_sha256"),
        "versions": provenance.package_versions(),
        "git_revision": provenance.git_revision(),
        "devices": provenance.device_facts(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    history = [record for record in read_records(run / "metrics.jsonl") if record["event"] == "eval"]
    title = name_checkpoint(directory, step)
    records = evaluation.evaluator.records
    evaluated = Evaluated(title, measures, evaluation.dataset, records, facts, history)
    record = evaluated.record()
    print(format_table({title: record}, facts["protocol"]))
    print(f"boundary mIoU {100 * record['boundary_miou']:.2f} %, calibration error (ECE) {100 * record['ece']:.2f} %")
    logging.getLogger(__name__).info("wrote %s", write_evaluation(folder, evaluated))


if __name__ == "__main__":
    absl_flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")
    absl_flags.DEFINE_string("out", None, "Folder of the report; WORKDIR/evaluation/STEP if left out.")
    kept = "the report is not complete; the same command writes it again"
    run_command(main, run_config=saved_config.__file__, kept=kept)
