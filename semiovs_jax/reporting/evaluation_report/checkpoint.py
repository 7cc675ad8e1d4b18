"""Evaluates a checkpoint of a run, with all measures."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from tqdm import tqdm

from data_pipelines.files import as_path
from semiovs_jax.checkpoints.checkpointer import Restored, Which, find_checkpoints, name_checkpoint, restore_weights
from semiovs_jax.evaluated import Evaluation, open_evaluation
from semiovs_jax.evaluation.measures import measure
from semiovs_jax.reporting.evaluation_report.files import Evaluated
from semiovs_jax.reporting.metrics_log import read_records
from semiovs_jax.runtime import provenance
from semiovs_jax.runtime.sharding import make_mesh

_SHOWN_AFTER = 2.0  # seconds


class OpenedCheckpoint(NamedTuple):
    """A checkpoint on the devices, and what evaluates it.

    Attributes:
      config: how to evaluate; the run's, or one with other values.
      evaluation: the validation split and the model that is evaluated.
      restored: its weights and its description.
      directory: the directory of the run's checkpoints.
    """

    config: ml_collections.ConfigDict
    evaluation: Evaluation
    restored: Restored
    directory: Path

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.restored.meta["step"])

    @property
    def run(self) -> Path:
        """The workdir."""
        return self.directory.parent

    def facts(self) -> Mapping[str, Any]:
        """Entries of eval.json."""
        return {
            "step": self.step,
            "checkpoint": str(self.directory / str(self.step)),
            "protocol": self.evaluation.evaluator.protocol,
            "dataset": self.evaluation.model.dataset.name,
            "config_sha256": provenance.config_sha256(provenance.config_as_json(self.config)),
            "run_config_sha256": self.restored.meta.get("config_sha256"),
            "versions": provenance.package_versions(),
            "git_revision": provenance.git_revision(),
            "devices": provenance.device_facts(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def open_checkpoint(config: ml_collections.ConfigDict, workdir: str | Path, which: Which) -> OpenedCheckpoint:
    """Restores what is evaluated of a checkpoint.

    Args:
      config: the experiment.
      workdir: a run, or the directory of one checkpoint in it.
      which: see `restore_weights`.

    Raises:
      InputError: as `open_evaluation` and `restore_weights`.
    """
    directory, _ = find_checkpoints(workdir)
    evaluation = open_evaluation(config, make_mesh())
    restored = restore_weights(workdir, evaluation.model.target, which)
    return OpenedCheckpoint(config, evaluation, restored, as_path(directory, "--workdir"))


def evaluate_checkpoint(checkpoint: OpenedCheckpoint) -> Evaluated:
    """Evaluates a checkpoint, and shows how far it is; every process must call this.

    Raises:
      InputError: as `Evaluator.predictions`.
    """
    model, evaluator = checkpoint.evaluation
    weights = model.weights(checkpoint.restored.state)
    predictions = tqdm(
        evaluator.predictions(*weights),
        "evaluate",
        len(evaluator.records),
        unit="image",
        delay=_SHOWN_AFTER,
        disable=jax.process_index() > 0,
    )
    measures = measure(predictions, model.dataset)
    log = read_records(checkpoint.run / "metrics.jsonl")
    history = [record for record in log if record["event"] == "eval"]
    title = name_checkpoint(checkpoint.directory, checkpoint.step)
    return Evaluated(title, measures, model.dataset, evaluator.records, checkpoint.facts(), history)
