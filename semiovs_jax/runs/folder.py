"""The workdir of a run, opened at its start: refused to another config or data set, left as it is once finished."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from data_pipelines.errors import InputError, first_few
from data_pipelines.files import as_path
from data_pipelines.labels.manifest import labels_folder
from data_pipelines.labels.verify import Verified
from semiovs_jax.checkpoints.checkpointer import SUBDIR, find_checkpoints
from semiovs_jax.checkpoints.reading import list_steps, read_meta
from semiovs_jax.runs.changes import LENGTH, Run, changed_keys, refusals
from semiovs_jax.runs.digests import run_digests
from semiovs_jax.runs.record import Record, read_record
from semiovs_jax.runtime.provenance import config_as_json
from semiovs_jax.runtime.shared_folders import check_shared
from semiovs_jax.runtime.workdir import workdir_path

_RESULT, _TABLE = "result.json", "table.txt"
_LONGER = (
    "the run is %s steps long now; from step %d on, the learning rate and the weights of the losses are those of that "
    "length"
)

_logger = logging.getLogger(__name__)


def open_run(
    config: ml_collections.ConfigDict, workdir: str | Path, fork_from: str | Path | None = None
) -> "RunFolder":
    """Opens the workdir of a run, which may be missing; every process must call this.

    Args:
      config: the experiment.
      workdir: the folder.
      fork_from: see `RunFolder`.

    Raises:
      InputError: as `workdir_path`, `check_shared` and `RunFolder`.
    """
    path = workdir_path(workdir)
    folders = {"--workdir": path}
    if config.method.ood == "ovs" and config.ovs.labels == "cached":
        folders["config.ovs.labels_dir"] = labels_folder(config.ovs.labels_dir)
    check_shared(folders)
    return RunFolder(path, config, fork_from)


class RunFolder:
    """A workdir, checked against a config.

    A workdir holds a run as soon as it has a checkpoint or a result. Before that, any config may start in it.

    Attributes:
      path: the workdir.
      fork_from: the run or checkpoint to start from; None if the workdir holds a run already.
      finished: whether the run is finished: there is nothing to do.
    """

    def __init__(self, path: Path, config: ml_collections.ConfigDict, fork_from: str | Path | None = None):
        """Compares the workdir with a config and its data; takes about a second.

        Args:
          path: the workdir, see `workdir_path`.
          config: the experiment.
          fork_from: the workdir of another run, or one checkpoint in it, to start from.

        Raises:
          InputError: the workdir holds a run of another config or of other data, or one that started elsewhere; or
            there is no checkpoint to fork from.
        """
        self.path = path
        self._config = config
        steps, result = list_steps(epath.Path(path) / SUBDIR), _read_result(path)
        self._held = _held_record(path, steps, result) if steps or result else None
        steps_per_epoch = self._held.run.steps_per_epoch if self._held else None
        run = Run(config_as_json(config), run_digests(config), steps_per_epoch)
        self._refuse_others(run)
        self.fork_from = self._check_fork(fork_from)
        self.finished = self._held is not None and run.steps is not None and result.get("steps", 0) >= run.steps

    def log_finished(self) -> None:
        """Logs the final table, and that there is nothing to do."""
        if jax.process_index() > 0:
            return
        table = self.path / _TABLE
        if table.is_file():
            _logger.info(table.read_text(encoding="utf-8").rstrip())
        _logger.info(
            "finished: nothing to do; the result is in %s. For a longer run, set config.train.steps; for another run, "
            "another --workdir",
            self.path / _RESULT,
        )

    def refuse_changed_images(self, labels: Verified | None) -> None:
        """Refuses, before they are labeled again, OOD images that are not those of the run that the workdir holds.

        Args:
          labels: the state of the cached labels; None if the run reads none.

        Raises:
          InputError: the workdir holds a run, and images were replaced since they were labeled.
        """
        if self._held is not None and labels is not None and labels.changed:
            raise InputError(
                f"{self.path}: holds a run of other OOD images: {len(labels.changed)} are not those that were labeled "
                f"({first_few(labels.changed, 3)}); put them back, or use another --workdir"
            )

    def begin(self, after_step: int, steps_per_epoch: int) -> Record:
        """Records that training begins, once everything else is known to be usable.

        Args:
          after_step: updates that are done.
          steps_per_epoch: updates in one pass over the unlabeled stream.

        Returns:
          The record, which is written by process 0.

        Raises:
          InputError: labels that were made now are others than those of the run, or no step is left of a fork.
        """
        run = Run(config_as_json(self._config), run_digests(self._config), steps_per_epoch)
        self._refuse_others(run)
        changed: dict[str, Any] = {}
        if self._held is None:
            record = Record(run, self._origin(run, after_step) if self.fork_from else None)
        else:
            record = Record(run, self._held.forked_from, self._held.starts)
            changed = changed_keys(self._held.run.config, run.config)
            if LENGTH & changed.keys() and run.steps != self._held.run.steps:
                _logger.warning(_LONGER, run.steps, after_step)
        record = record.started(after_step, changed)
        if jax.process_index() == 0:
            record.write(self.path)
        return record

    def _refuse_others(self, run: Run) -> None:
        if self._held is not None and (lines := refusals(self._held.run, run)):
            raise InputError(
                "\n  ".join((f"{self.path}: holds a run of another config or of other data:", *lines))
                + f"\nuse another --workdir; to continue that run there under this config, add --fork_from={self.path}"
            )

    def _check_fork(self, fork_from: str | Path | None) -> Path | None:
        if fork_from is None:
            return None
        source = workdir_path(fork_from, "--fork_from")
        if self._held is None:
            find_checkpoints(source, "--fork_from")
            return source
        origin = (self._held.forked_from or {}).get("checkpoint", "")
        if not as_path(origin, "--fork_from").is_relative_to(source):
            raise InputError(
                f"--fork_from={fork_from}: {self.path} holds a run that "
                + (f"was forked from {origin}" if origin else "was not forked")
                + "; use another --workdir, or leave out --fork_from to continue it"
            )
        return None

    def _origin(self, run: Run, step: int) -> dict[str, Any]:
        assert self.fork_from is not None
        if run.steps is not None and step >= run.steps:
            raise InputError(
                f"--fork_from={self.fork_from}: its checkpoint is after step {step}, and the run is {run.steps} steps "
                "long: no step is left; set config.train.steps to more"
            )
        directory, _ = find_checkpoints(self.fork_from, "--fork_from")
        meta = read_meta(directory / str(step))
        return {"checkpoint": str(directory / str(step)), "step": step, "config_sha256": meta.get("config_sha256")}


def _held_record(path: Path, steps: list[int], result: dict[str, Any]) -> Record | None:
    """The record of a run; that of an earlier version is made from its newest checkpoint that can be read."""
    if record := read_record(path):
        return record
    for step in sorted(steps, reverse=True):
        try:
            config = read_meta(epath.Path(path) / SUBDIR / str(step))["config"]
        except (OSError, ValueError, KeyError):
            continue  # damaged, which is logged when it is restored
        return Record(Run(config, {}, _steps_per_epoch(config, result)))
    return None


def _steps_per_epoch(config: dict[str, Any], result: dict[str, Any]) -> int | None:
    """As a finished run of an earlier version had it; None if unknown."""
    train = config["train"]
    return result["steps"] // train["epochs"] if not train["steps"] and "steps" in result else None


def _read_result(path: Path) -> dict[str, Any]:
    """Reads result.json; an empty one if the run is not finished or the file cannot be read."""
    try:
        result = json.loads((path / _RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}
