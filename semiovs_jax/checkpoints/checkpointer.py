"""Checkpoints: the state, the data position and a JSON description, saved in the background.

A checkpoint is a directory `WORKDIR/checkpoints/STEP` with the items `state` (a pytree of arrays), `data` (the
Grain position of every process) and `meta` (JSON), and `checksums.json` over their files. The latest few and the
best by mIoU are kept; a broken one is skipped and set aside.

Every process calls every method, with the same arguments; `WORKDIR` is on storage all processes share.
"""

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata as package_metadata
from typing import Any, Literal, NamedTuple

import grain
import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints.reading import (
    first_whole,
    list_steps,
    load_state,
    read_data_position,
    read_meta,
    read_miou,
    read_scores,
    write_checksums,
)

SUBDIR = "checkpoints"
_PACKAGES = ("semiovs-jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Best(NamedTuple):
    """The evaluated checkpoint with the highest mIoU."""

    step: int
    miou: float


class Restored(NamedTuple):
    """What a checkpoint gave back: `state` as the target asked, `meta` as it was saved."""

    state: Any
    meta: dict[str, Any]


def describe_run(config: ml_collections.ConfigDict, model: Mapping[str, Any]) -> dict[str, Any]:
    """The `meta` of a run's checkpoints: its config with a hash, its model, and the versions that ran it.

    Args:
      config: the run's whole config.
      model: what tells this model from another one, for a person to read (backbone, number of classes, ...).

    Returns:
      A JSON-serializable dict with the keys config, config_sha256, model and versions.
    """
    config_json = json.loads(json.dumps(config.to_dict(), default=str))
    text = json.dumps(config_json, sort_keys=True)
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:  # run from a checkout that was never installed
            versions[name] = "not installed"
    return {
        "config": config_json,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "model": dict(model),
        "versions": versions,
    }


class Checkpointer:
    """Saves and restores the checkpoints of one run.

    Use as a context manager, or call `close`: leaving waits for a save that is still being written.

    Attributes:
      directory: where the checkpoints lie.
      best: step and mIoU of the best evaluated checkpoint on disk, None before the first.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_latest: int = 2):
        """Opens (and creates) `workdir/checkpoints`.

        Args:
          workdir: the run's directory, local or any path `etils.epath` understands.
          keep_latest: how many of the newest checkpoints to keep, besides the best.

        Raises:
          InputError: the directory cannot be made.
        """
        self.directory = epath.Path(workdir).absolute() / SUBDIR
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"workdir {workdir}: cannot make {self.directory} ({error.strerror or error}); "
                "pass a --workdir that this user can write to"
            ) from error
        self._saving = 0
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=lambda miou: miou, n=1, keep_checkpoints_without_metrics=False)
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_latest), best]),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def best(self) -> Best | None:
        """Step and mIoU of the best evaluated checkpoint on disk, None before the first."""
        return _best(read_scores(self.directory))

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None before the first."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: Any,
        data_iterator: grain.DatasetIterator,
        meta: Mapping[str, Any],
        miou: float | None = None,
    ) -> bool:
        """Copies the state to the host, then writes it in the background.

        The state may be donated as soon as this returns. A save that is still being written is waited for.

        Args:
          step: updates done.
          state: pytree of arrays.
          data_iterator: its position is saved; it must stand where the state does.
          meta: JSON-serializable description, see `describe_run`. Saved with step, miou and best added.
          miou: the state's mIoU in [0, 1] if it was evaluated. Not-a-number counts as not evaluated.

        Returns:
          False if this step (or a later one) is saved already and nothing was done.
        """
        latest = self._manager.latest_step()
        if latest is not None and latest >= step:
            return False
        # Orbax would wait too, but the callback of the previous save must not see this save's step.
        self._manager.wait_until_finished()
        self._saving = step
        miou = float(miou) if miou is not None and math.isfinite(miou) else None
        best = _best(read_scores(self.directory) | ({} if miou is None else {step: miou}))
        document = {**meta, "step": step, "miou": miou, "best": best._asdict() if best else None}
        return self._manager.save(
            step,
            metrics=miou,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=grain.checkpoint.CheckpointSave(data_iterator),
                meta=ocp.args.JsonSave(document),
            ),
        )

    def restore(self, target: Any, data_iterator: grain.DatasetIterator) -> Restored | None:
        """Restores the newest whole checkpoint; sets `data_iterator` to its position.

        Checkpoints that are broken are reported in the log, and renamed to `broken-STEP` once an older one was
        restored, so that the run can save these steps again.

        Args:
          target: pytree of arrays or shape structs like the saved state; the shardings decide where the state
            goes, whatever devices saved it.
          data_iterator: the iterator of the same data pipeline, over any number of processes.

        Returns:
          (state, meta), or None if there is no checkpoint at all.

        Raises:
          InputError: the checkpoint is of another model, or there are checkpoints and all are broken.
        """
        steps = list_steps(self.directory)
        if not steps:
            return None

        def load(step_dir: epath.Path) -> Restored:
            restored = Restored(load_state(step_dir, target), read_meta(step_dir))
            data_iterator.set_state(read_data_position(step_dir))
            return restored

        step, restored = first_whole(self.directory, sorted(steps, reverse=True), load)
        self._set_aside([other for other in steps if other > step])
        return restored

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what went wrong while writing it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the manager."""
        self._manager.close()

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

    def _write_checksums(self) -> None:
        """Runs in Orbax's writing thread of the first process, when all files are written but not committed."""
        names = {path.name for path in self.directory.iterdir() if path.name.split(".")[0] == str(self._saving)}
        (name,) = names  # STEP.SUFFIX where Orbax commits by renaming, STEP where it commits by a marker file
        write_checksums(self.directory / name)


def restore_weights(
    source: epath.PathLike, target: Mapping[str, Any], which: Literal["best", "latest"] = "best"
) -> Restored:
    """Restores a part of a state, such as params and batch_stats, from a run that may be going on.

    Args:
      source: a workdir, or the directory of one checkpoint in it.
      target: {"params": ..., "batch_stats": ...} as pytrees of arrays or shape structs; their shardings count.
      which: "best" by mIoU (the latest if none was evaluated) or "latest". A broken one falls back to the next.

    Returns:
      (weights like `target`, meta).

    Raises:
      InputError: no checkpoint, none that is whole, or a checkpoint of another model.
    """
    source = epath.Path(source).absolute()
    if (source / "state").is_dir():
        directory, steps = source.parent, [source.name]
    else:
        directory = source / SUBDIR
        scores = read_scores(directory) if which == "best" else {}
        newest_first = sorted(list_steps(directory), reverse=True)
        steps = sorted(newest_first, key=lambda step: -scores.get(step, -math.inf))
    if not steps:
        raise InputError(f"{source}: no checkpoint in {directory}; pass the --workdir of a run that has saved")
    _, restored = first_whole(
        directory,
        steps,
        lambda step_dir: Restored(load_state(step_dir, target, partial=True), read_meta(step_dir)),
    )
    return restored


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which reads the metric of a checkpoint on disk from `meta`: it has no item of its own."""

    def metrics(self, step: int) -> float | None:
        return read_miou(self.directory / str(step))


def _best(scores: Mapping[int, float]) -> Best | None:
    """The highest score; of equal ones the latest."""
    if not scores:
        return None
    step = max(scores, key=lambda step: (scores[step], step))
    return Best(step, scores[step])


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
