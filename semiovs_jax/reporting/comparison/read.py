"""Reads runs from their workdirs, finished or not, and finds those that differ in the seed alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import Faults, InputError
from semiovs_jax.evaluation.evaluator import describe_protocol
from semiovs_jax.reporting import table
from semiovs_jax.reporting.metrics_log import read_records
from semiovs_jax.runs.changes import MAY_CHANGE, PATHS, current_keys
from semiovs_jax.runs.record import read_record
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.runtime.provenance import config_as_json
from semiovs_jax.runtime.workdir import workdir_path

_METRICS = "metrics.jsonl"


class ComparedRun(NamedTuple):
    """What is compared of a run.

    Attributes:
      name: its workdir as it was given.
      config: values by dotted key, with the names of today.
      digests: of its data and weights by config key; empty for a run of an earlier version.
      protocol: how it is evaluated, in one sentence.
      steps: its length; None if unknown.
      records: lines of its metrics log.
    """

    name: str
    config: Mapping[str, Any]
    digests: Mapping[str, str]
    protocol: str
    steps: int | None
    records: Sequence[Mapping[str, Any]]

    @property
    def method(self) -> str:
        """Its method, and what it does with OOD images."""
        ood = self.config["method.ood"]
        return self.config["method.name"] + ("" if ood == "none" else f", OOD {ood}")

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """Its evaluations by step."""
        return [record for record in self.records if record["event"] == "eval"]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The evaluation with the highest mIoU; None before the first."""
        return table.best_of(self.evaluations) if self.evaluations else None

    @property
    def last(self) -> Mapping[str, Any] | None:
        """The last evaluation; None before the first."""
        return self.evaluations[-1] if self.evaluations else None


def read_runs(workdirs: Sequence[str]) -> list[ComparedRun]:
    """Reads runs.

    Args:
      workdirs: their workdirs.

    Raises:
      InputError: a folder holds no run, or a file cannot be read; one fault for each.
    """
    faults, runs = Faults(), []
    for name in workdirs:
        with faults.collected():
            runs.append(_read_run(name))
    faults.refuse()
    return runs


def _read_run(name: str) -> ComparedRun:
    folder: Path = workdir_path(name, "RUN")
    records = read_records(folder / _METRICS)
    if not records:
        raise InputError(
            f"{folder / _METRICS}: missing or empty; pass the workdir of a run that has logged a step or an evaluation"
        )
    config, record = get_config(name), read_record(folder)
    steps = record.run.steps if record else config.train.steps or None
    digests = record.run.digests if record else {}
    return ComparedRun(
        name, current_keys(config_as_json(config)), digests, describe_protocol(config.eval), steps, records
    )


def groups_of_seeds(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """The runs, those together that differ in the seed alone, in the order of the first of each group.

    Keys that change no number do not count, nor do paths whose content both runs know.
    """
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(_without_seed(run), []).append(run)
    return list(groups.values())


def _without_seed(run: ComparedRun) -> str:
    known = {key for key, names in PATHS.items() if any(name in run.digests for name in names)}
    left_out = {"seed", *MAY_CHANGE, *known}
    kept = {key: value for key, value in run.config.items() if key not in left_out}
    return repr((sorted(kept.items()), sorted(run.digests.items())))
