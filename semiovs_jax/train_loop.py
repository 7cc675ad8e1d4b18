"""The steps of a run, and what happens between them."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run
from semiovs_jax.evaluation.evaluator import Evaluator, ImageScores, NotFiniteLogitsError
from semiovs_jax.experiment import Experiment
from semiovs_jax.guard import Guard
from semiovs_jax.methods import STUDENT
from semiovs_jax.reporting import Report
from semiovs_jax.reporting.goodput import Goodput
from semiovs_jax.reporting.inspection import make_inspection
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.profile import Profile
from semiovs_jax.runtime.sharding import shard_batch
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import StepSpec, make_after_evaluation

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunParts:
    """What a run is made of before it has a state.

    Attributes:
      experiment: what the config names.
      mesh: the devices.
      spec: the static side of the step.
      weights: of the labelers, on the devices.
      data: the training batches of this process.
      batch_structs: shapes and shardings of the part of a batch that the step reads.
      steps: length of the whole run.
      evaluator: of the validation images.
    """

    experiment: Experiment
    mesh: Mesh
    spec: StepSpec
    weights: Any
    data: TrainData
    batch_structs: Any
    steps: int
    evaluator: Evaluator


class TrainLoop:
    """The steps of a run; evaluates, saves and stops between them.

    Attributes:
      by_image: the scores of each image at the last evaluation; None if that had none.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        parts: RunParts,
        train_step: Callable[..., Any],
        checkpointer: Checkpointer,
        guard: Guard,
        report: Report,
        profile: Profile,
        preemption: Preemption,
        goodput: Goodput,
    ):
        """Takes a run's parts and what watches over it; these are open."""
        self._parts, self._train_step, self._checkpointer, self._guard = parts, train_step, checkpointer, guard
        self._report, self._profile, self._preemption, self._goodput = report, profile, preemption, goodput
        self._eval_every = config.train.eval_every_steps or parts.data.steps_per_epoch
        self._save_every = config.train.checkpoint_every_steps or parts.data.steps_per_epoch
        self._draws_panels = config.train.panel_images > 0
        self._inspect = make_inspection(parts.spec, parts.mesh, config.train.panel_images)
        self._after_evaluation = make_after_evaluation(parts.spec, parts.mesh)
        run = parts.experiment
        facts = {
            "backbone": config.model.backbone,
            "classes": run.dataset.num_classes,
            "evaluates": run.method.evaluates,
        }
        self._meta = describe_run(config, facts)
        self.by_image: ImageScores | None = None

    def run(self, state: TrainState, first: int) -> TrainState:
        """Takes the steps after `first`, and returns the state after the last.

        Evaluation and saving come after the step whose state they see; the position of the data that is saved is that
        of the next batch.
        """
        steps = self._parts.steps
        metrics: Mapping[str, jax.Array] = {}
        for step in range(first + 1, steps + 1):
            self._profile.before(step, state)
            batch = self._read(step, state, metrics)
            with self._goodput.phase("steps"):
                state, metrics = self._train_step(state, batch, self._parts.weights)
                self._report.step(step, metrics)
                self._guard.after_step(step, metrics)
            self._profile.after(step, metrics)

            miou = None
            evaluates = step % self._eval_every == 0 or step == steps
            if evaluates:
                state, miou = self._evaluate(step, state, batch)

            leaving = self._preemption.reached(step)
            if evaluates or step % self._save_every == 0 or leaving:
                self._save(step, state, miou, wait=leaving or step == steps)
            if leaving and step < steps:
                raise self._preemption.stopped(f"after step {step} of {steps}")
        return state

    def _read(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> Any:
        """The batch of a step on the devices; where reading fails after a signal, saves the state before it."""
        parts = self._parts
        try:
            with self._goodput.input(metrics):
                return shard_batch(read_by_step(next(parts.data.iterator), parts.batch_structs), parts.mesh)
        except InputError as error:
            if not self._preemption.pending or jax.process_count() > 1:
                raise
            self._save(step - 1, state, wait=True)
            raise self._preemption.stopped(f"after step {step - 1} of {parts.steps} ({error})") from error

    def _evaluate(self, step: int, state: TrainState, batch: Any) -> tuple[TrainState, float | None]:
        """The state, which labelers may have changed, and the mIoU; None if the logits are not finite."""
        self.by_image = None
        with self._goodput.phase("steps"):
            self._guard.check(step, state)
        with self._goodput.phase("evaluation"):
            if self._draws_panels:
                self._report.panel(step, self._inspect(state, batch, self._parts.weights))
            try:
                evaluated = evaluated_weights(self._parts.spec, state)
                scores, self.by_image = self._parts.evaluator.run_by_image(*evaluated)
            except NotFiniteLogitsError as error:
                _logger.warning("step %d has no mIoU: %s", step, error)
                return state, None
            self._report.evaluation(step, scores)
            return self._after_evaluation(state, scores.mean_iou), scores.mean_iou

    def _save(self, step: int, state: TrainState, miou: float | None = None, wait: bool = False) -> None:
        with self._goodput.phase("steps"):
            self._guard.check(step, state)
        with self._goodput.phase("checkpoint"):
            written = {"bad_steps": list(self._guard.bad_steps), "metrics_log": self._report.log_digest()}
            self._checkpointer.save(step, state, self._parts.data.iterator, self._meta | written, miou)
            if wait:
                self._checkpointer.wait()


def read_by_step(batch: Mapping[str, Any], structs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a batch that the step reads: those in `experiment.batch_structs`."""
    return {stream: {name: batch[stream][name] for name in fields} for stream, fields in structs.items()}


def evaluated_weights(spec: StepSpec, state: TrainState) -> tuple[Any, Any]:
    """(params, batch_stats) that the method evaluates: the student's, or a labeler's."""
    name = spec.method.evaluates
    if name == STUDENT:
        return state.params, state.batch_stats
    return spec.labelers[name].student_weights(state.labeler(name))
