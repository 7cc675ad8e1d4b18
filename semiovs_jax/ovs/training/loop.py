"""Shared parts of OVS training: the state, the loop, and the metadata of trained weights."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_collections
import optax
from tqdm import tqdm

from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run
from semiovs_jax.evaluation.metrics import Scores
from semiovs_jax.runtime.preemption import Preemption


class TrainState(NamedTuple):
    """The state of a run, one pytree.

    Attributes:
      step: int32 [], number of updates done.
      params: trained parameters by part ("visual", "text", ...), pure dicts.
      opt_state: state of the optimizer.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: optax.OptState

    @classmethod
    def create(cls, params: dict[str, Any], optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first update."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params))


Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def run_steps(
    step: Step,
    state: TrainState,
    batches: Iterator[Any],
    config: ml_collections.ConfigDict,
    after_step: Callable[[int, TrainState], None] = lambda number, state: None,
) -> TrainState:
    """Trains from `state.step` to `config.train.steps`, with a progress bar that shows the latest metrics.

    Args:
      step: (state, batch) -> (state, metrics).
      state: the initial state.
      batches: one per step.
      config: `train.steps` and `train.log_every_steps`. The host waits for the device only after logged steps.
      after_step: called with the number of updates done and the state.

    Returns:
      The state after the last step.
    """
    steps, first = config.train.steps, int(state.step)
    with tqdm(total=steps, initial=first, desc="train", unit="step", smoothing=0.05) as progress:
        for number in range(first + 1, steps + 1):
            state, metrics = step(state, next(batches))
            if number % config.train.log_every_steps == 0 or number == steps:
                progress.set_postfix({name: f"{float(value):.4f}" for name, value in metrics.items()})
            progress.update()
            after_step(number, state)
    return state


def run_restorable(
    step: Step,
    state: TrainState,
    batches: grain.DatasetIterator,
    config: ml_collections.ConfigDict,
    workdir: str | Path,
) -> TrainState:
    """Does the same as `run_steps`, with checkpoints in `workdir`. Resumes from the latest one.

    The state after a step depends on config, data and step only, not on how often the run was interrupted.

    Args:
      step: as in `run_steps`.
      state: the state before the first update. Restored states get its shardings.
      batches: their position is part of the checkpoint.
      config: as in `run_steps`, and `train.checkpoint_every_steps`.
      workdir: folder of `checkpoints/`.

    Returns:
      The state after the last step.

    Raises:
      Stopped: a signal has stopped the loop; its checkpoint is saved.
    """
    every, last = config.train.checkpoint_every_steps, config.train.steps
    meta = describe_run(config, {"kind": config.kind})
    with Checkpointer(workdir) as checkpointer:
        restored = checkpointer.restore(state, batches)
        if restored is not None:
            state = restored.state
        with Preemption(int(state.step)) as preemption:

            def after_step(number: int, state: TrainState) -> None:
                leaving = preemption.reached(number)
                if number % every == 0 or number == last or leaving:
                    checkpointer.save(number, state, batches, meta)
                if leaving and number < last:
                    checkpointer.wait()
                    raise preemption.stopped(f"after step {number} of {last}")

            state = run_steps(step, state, batches, config, after_step)
            checkpointer.wait()
    return state


def report_quality(quality: Scores, classes: Sequence[str], count: int) -> None:
    """Prints mIoU and the IoU of each class, of the labels of `count` held-out images."""
    print(f"labels of {count} held-out images: mIoU {quality.mean_iou:.3f}")
    for name, iou in zip(classes, quality.iou, strict=True):
        print(f"  {name:<12}{iou:.3f}")


def provenance(
    config: ml_collections.ConfigDict, quality: Scores | None, classes: Sequence[str], data: dict[str, str]
) -> dict[str, str]:
    """Metadata of trained weights: the command and config that reproduce them, the data, and the quality of labels.

    Args:
      config: the whole config.
      quality: scores of the labels of held-out images; None without held-out images.
      classes: class names.
      data: facts about the training data. Its entries replace entries of the same name, such as "command".
    """
    made = {
        "command": "python -m semiovs_jax.ovs.train --config=CONFIG --workdir=WORKDIR, where CONFIG gives `experiment`",
        "experiment": json.dumps(config.to_dict(), sort_keys=True),
        **data,
    }
    if quality is None:
        return made
    iou = {name: round(float(value), 4) for name, value in zip(classes, quality.iou, strict=True)}
    return made | {"held_out_miou": f"{quality.mean_iou:.4f}", "held_out_iou": json.dumps(iou)}
