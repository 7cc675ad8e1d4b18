"""Checkpoints: the state, the data position and a JSON description, saved in the background.

A checkpoint is a directory `WORKDIR/checkpoints/STEP` with the items `state` (a pytree of arrays), `data` (the Grain
position of every process) and `meta` (JSON), and with `checksums.json` of their files. The latest few checkpoints and
the best by mIoU are kept. A damaged checkpoint is skipped and renamed.

Every process must call every method with the same arguments. All processes must share the storage of `WORKDIR`.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import grain
import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError
from data_pipelines.temporary import temporary_folder
from semiovs_jax.checkpoints.best import Best, find_best
from semiovs_jax.checkpoints.reading import (
    COMMITTED,
    first_whole,
    is_committed,
    list_steps,
    load_state,
    read_checksums,
    read_data_position,
    read_meta,
    read_miou,
    read_scores,
    saved_structs,
    write_checksums,
)
from semiovs_jax.checkpoints.staging import is_staged, remove_checkpoint, upload_checkpoint
from semiovs_jax.checkpoints.storage_errors import hide_repetitions, refusal
from semiovs_jax.finite import not_finite
from semiovs_jax.runtime.provenance import config_as_json, config_sha256, package_versions
from semiovs_jax.runtime.workdir import workdir_path

SUBDIR = "checkpoints"

Which = Literal["best", "latest"]

_WEIGHTS = {"params", "batch_stats"}  # of a train state, and of an average of the student


class Restored(NamedTuple):
    """A restored checkpoint: `state` with the structure and shardings of the target, `meta` as it was saved."""

    state: Any
    meta: dict[str, Any]


def describe_run(config: ml_collections.ConfigDict, model: Mapping[str, Any]) -> dict[str, Any]:
    """The `meta` of a run's checkpoints: config with a hash, model, and package versions.

    Args:
      config: the run's whole config.
      model: a readable description of the model (backbone, number of classes, ...), quoted in errors.

    Returns:
      A JSON-serializable dict with the keys config, config_sha256, model and versions.
    """
    content = config_as_json(config)
    return {
        "config": content,
        "config_sha256": config_sha256(content),
        "model": dict(model),
        "versions": package_versions(),
    }


class Checkpointer:
    """Saves and restores the checkpoints of one run.

    Use as a context manager, or call `close`: both wait until the last save is on disk.

    Attributes:
      directory: the directory of the checkpoints.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_latest: int = 2):
        """Opens (and creates) `workdir/checkpoints`.

        Args:
          workdir: the run's directory, see `workdir_path`.
          keep_latest: number of the newest checkpoints to keep, besides the best.

        Raises:
          InputError: the directory cannot be created, or checkpoints below it could not be restored.
        """
        hide_repetitions()
        self.directory = epath.Path(workdir_path(workdir)) / SUBDIR
        self._keep_latest = keep_latest
        self._closing = contextlib.ExitStack()
        written = self.directory
        if self._staged:
            if jax.process_count() > 1:
                raise InputError(
                    f"--workdir={workdir}: several processes cannot save to S3; use gs://, or a folder that all "
                    "hosts share"
                )
            written = epath.Path(self._closing.enter_context(temporary_folder()))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--workdir={workdir}: cannot create {self.directory} ({error.strerror or error}); "
                "choose a folder you may write to"
            ) from error
        self._saving = 0
        policies = ocp.checkpoint_managers
        self._manager = _Manager(
            written,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.LatestN(1)
                if self._staged
                else policies.AnyPreservationPolicy([policies.LatestN(keep_latest), _KeepBest()]),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except InputError:
            if kind is None:  # otherwise the body's error has the cause
                raise

    @property
    def _staged(self) -> bool:
        return is_staged(self.directory)

    @property
    def best(self) -> Best | None:
        """Step and mIoU of the best evaluated checkpoint on disk, None before the first."""
        return find_best(read_scores(self.directory))

    def save(
        self,
        step: int,
        state: Any,
        data_iterator: grain.DatasetIterator,
        meta: Mapping[str, Any],
        miou: float | None = None,
    ) -> bool:
        """Copies the state to the host, then writes it in the background.

        The state may be donated as soon as this returns. Waits first until the previous save is on disk.

        Args:
          step: updates done.
          state: pytree of arrays.
          data_iterator: its position is saved; its next batch must be the one of update `step` + 1.
          meta: JSON-serializable description, see `describe_run`; step, miou and best are added.
          miou: the state's mIoU in 0..1, None if it was not evaluated; NaN counts as None.

        Returns:
          False if this step or a later one is already saved; nothing is written then.

        Raises:
          InputError: the state holds a NaN or an infinity, and nothing is written; or the previous save failed, or this
            one cannot begin: the disk is full, for example.
        """
        latest = max(list_steps(self.directory), default=None) if self._staged else self._manager.latest_step()
        if latest is not None and latest >= step:
            return False
        if parts := not_finite(state):
            raise InputError(f"step {step}: not finite: {', '.join(parts)}; it is not saved; {self.describe_saved()}")
        # Orbax waits, too, but only after `_saving` has changed, which the callback of the previous save reads.
        self.wait()
        self._saving = step
        miou = float(miou) if miou is not None and math.isfinite(miou) else None
        best = find_best(read_scores(self.directory) | ({} if miou is None else {step: miou}))
        document = {**meta, "step": step, "miou": miou, "best": best._asdict() if best else None}
        with self._storage_errors():
            return self._manager.save(
                step,
                metrics=miou,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=grain.checkpoint.CheckpointSave(data_iterator),
                    meta=ocp.args.JsonSave(document),
                ),
            )

    def restore(
        self, target: Any, data_iterator: grain.DatasetIterator, fork_from: epath.PathLike | None = None
    ) -> Restored | None:
        """Restores the newest undamaged checkpoint and sets `data_iterator` to its position.

        Damaged checkpoints are logged. Once an older one is restored, they are renamed to `broken-STEP`, so that the
        run can save these steps again.

        Args:
          target: pytree of arrays or shape structs like the saved state. Its shardings place the restored arrays; the
            devices that saved them do not matter.
          data_iterator: an iterator of the same data pipeline, for any number of processes.
          fork_from: the workdir of another run, or the directory of one checkpoint in it, which is restored if this run
            has no checkpoint; it is not changed.

        Returns:
          (state, meta), or None if there is no checkpoint.

        Raises:
          InputError: the checkpoint is of another model, or all checkpoints are damaged.
        """
        directory, steps = self.directory, list_steps(self.directory)
        if fork_from is not None and not steps:
            directory, steps = find_checkpoints(fork_from, "--fork_from")
        if not steps:
            return None

        def load(step_dir: epath.Path) -> Restored:
            restored = Restored(load_state(step_dir, target), read_meta(step_dir))
            data_iterator.set_state(read_data_position(step_dir))
            return restored

        step, restored = first_whole(directory, sorted(steps, reverse=True), load)
        if directory == self.directory:
            self._set_aside([other for other in steps if other > step])
        return restored

    def describe_saved(self) -> str:
        """The newest and the best checkpoint in words; waits for the last save."""
        self.wait()
        steps = list_steps(self.directory)
        if not steps:
            return f"there is no checkpoint in {self.directory} yet"
        text = f"the newest checkpoint is {self.directory / str(max(steps))}"
        if best := self.best:
            text += f", the best {self.directory / str(best.step)} (mIoU {100 * best.miou:.2f} %)"
        return text

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises the error if it failed."""
        with self._storage_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases Orbax's manager; raises the error of a failed save."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._closing.close()

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Raises an `InputError` for what the operating system refuses, here or in Orbax's threads."""
        try:
            yield
        except Exception as error:
            if (reason := refusal(error)) is None:
                raise
            self._remove_unfinished()
            steps = list_steps(self.directory)
            kept = f"goes on after step {max(steps)}" if steps else "starts again"
            raise InputError(
                f"{self.directory}: a checkpoint cannot be written ({reason}); make room there or restore access, then "
                f"run the same command, which {kept}"
            ) from error

    def _remove_unfinished(self) -> None:
        """Removes the files of the save that failed, which take room."""
        with contextlib.suppress(OSError):
            for path in self.directory.iterdir():
                unmarked = path.name == str(self._saving) and not is_committed(path)
                if unmarked or path.name.startswith(f"{self._saving}."):
                    path.rmtree()

    def _set_aside(self, steps: Sequence[int]) -> None:
        for step in steps:
            if jax.process_index() == 0:
                aside = self.directory / f"broken-{step}"
                if aside.exists():
                    aside.rmtree()
                (self.directory / str(step)).rename(aside)
        if steps:
            _barrier("checkpoints set aside")
            self._manager.reload()

    def _complete(self) -> None:
        """Called by Orbax, in the first process's writing thread, after all files are written and before the commit."""
        written = self._manager.directory
        names = {path.name for path in written.iterdir() if path.name.split(".")[0] == str(self._saving)}
        (name,) = names  # STEP.SUFFIX if Orbax commits by renaming, STEP if it commits by a marker file
        write_checksums(written / name)
        if self._staged:
            upload_checkpoint(written / name, self.directory / str(self._saving), COMMITTED)
            self._prune()

    def _prune(self) -> None:
        """Removes what Orbax would, see `__init__`, and what a killed process has left."""
        steps, best = sorted(list_steps(self.directory)), self.best
        kept = {str(step) for step in (*steps[-self._keep_latest :], *([best.step] if best else []))}
        for path in self.directory.iterdir():
            if path.name.isdigit() and path.name not in kept:
                remove_checkpoint(path, COMMITTED)


def restore_weights(source: epath.PathLike, target: Mapping[str, Any], which: Which = "best") -> Restored:
    """Restores a part of a state, such as params and batch_stats; the run may still be writing.

    Args:
      source: a workdir, see `workdir_path`, or the directory of one checkpoint in it.
      target: such as {"params": ..., "batch_stats": ...}: pytrees of arrays or shape structs, whose shardings are used.
      which: "best" by mIoU (the latest if none was evaluated) or "latest". If it is damaged, the next one is tried.

    Returns:
      (weights like `target`, meta).

    Raises:
      InputError: no checkpoint, no undamaged one, or a checkpoint of another model.
    """

    def load(step_dir: epath.Path) -> Restored:
        return Restored(load_state(step_dir, target, partial=True), read_meta(step_dir))

    return first_whole(*_preferred(source, which), load)[1]


def read_evaluated(source: epath.PathLike, which: Which = "best", field: str = "--workdir") -> Restored:
    """Reads the model that a run evaluates, in the shapes that it has, onto one device.

    Args:
      source: as in `restore_weights`.
      which: as in `restore_weights`.
      field: the name of `source` in error messages.

    Returns:
      ({"params": ..., "batch_stats": ...}, meta).

    Raises:
      InputError: no checkpoint, or no undamaged one.
    """

    def load(step_dir: epath.Path) -> Restored:
        meta, saved = read_meta(step_dir), saved_structs(step_dir)
        name = meta.get("model", {}).get("evaluates", "")
        averaged = saved.get("labelers", {}).get(name, {})
        if averaged.keys() >= _WEIGHTS:
            state = load_state(step_dir, {"labelers": {name: averaged}}, partial=True)["labelers"][name]
        else:
            state = load_state(step_dir, {key: saved[key] for key in _WEIGHTS}, partial=True)
        return Restored({key: state[key] for key in sorted(_WEIGHTS)}, meta)

    return first_whole(*_preferred(source, which, field), load)[1]


def state_sha256(source: epath.PathLike, which: Which = "best") -> str:
    """A digest of the state that `read_evaluated` reads, from the checksums of its files; raises as it does."""

    def load(step_dir: epath.Path) -> str:
        sums = {name: sum_ for name, sum_ in read_checksums(step_dir).items() if name.startswith("state/")}
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()

    return first_whole(*_preferred(source, which), load)[1]


def _preferred(source: epath.PathLike, which: Which, field: str = "--workdir") -> tuple[epath.Path, list[int]]:
    """The directory of a run's checkpoints, and the steps in the order in which they are tried."""
    directory, found = find_checkpoints(source, field)
    scores = read_scores(directory) if which == "best" else {}
    steps = sorted(found, key=lambda step: -step)
    steps.sort(key=lambda step: (-scores[step], step) if step in scores else (math.inf, 0))
    return directory, steps


def find_checkpoints(source: epath.PathLike, field: str = "--workdir") -> tuple[epath.Path, list[int]]:
    """The directory of a run's checkpoints, and the steps of all or, if `source` is one checkpoint, its step.

    Args:
      source: a workdir, or the directory of one checkpoint in it.
      field: the name of `source` in error messages.

    Raises:
      InputError: there is no checkpoint.
    """
    folder = epath.Path(workdir_path(source, field))
    if folder.name.isdigit() and (folder / "state").is_dir():
        return folder.parent, [int(folder.name)]
    if steps := list_steps(folder / SUBDIR):
        return folder / SUBDIR, steps
    raise InputError(f"{field}={source}: no checkpoint in {folder / SUBDIR}; pass the workdir of a run that saved one")


def name_checkpoint(directory: epath.Path, step: int) -> str:
    """Says which of a run's checkpoints one is: "best, step 450", "latest, step 600", or "step 500"."""
    best = find_best(read_scores(directory))
    if best is not None and step == best.step:
        return f"best, step {step}"
    return f"latest, step {step}" if step >= max(list_steps(directory), default=step) else f"step {step}"


class _KeepBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the best evaluated checkpoint."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        best = find_best({info.step: info.metrics for info in checkpoints if info.metrics is not None})
        return [best is not None and info.step == best.step for info in checkpoints]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which reads the metric of a checkpoint from `meta` in place of an item of its own."""

    def metrics(self, step: int) -> float | None:
        return read_miou(self.directory / str(step))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
