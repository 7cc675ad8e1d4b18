"""A run from its inputs to its final table."""

import contextlib
import logging
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from data_pipelines.errors import InputError
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax import experiment
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run
from semiovs_jax.config_checks import inspect as inspect_config
from semiovs_jax.config_checks import refuse_config
from semiovs_jax.embedded_benchmark import lacks_benchmark, make_benchmark
from semiovs_jax.evaluation.evaluator import Evaluator, ImageScores, NotFiniteLogitsError
from semiovs_jax.guard import Guard
from semiovs_jax.methods import STUDENT
from semiovs_jax.ood_labels import prepare_labels
from semiovs_jax.reporting import Report, Summary
from semiovs_jax.reporting.goodput import Goodput
from semiovs_jax.reporting.inspection import make_inspection
from semiovs_jax.reporting.run_page import gather
from semiovs_jax.runs.folder import open_run
from semiovs_jax.runtime.ahead import bytes_per_device, compile_step, flops_per_device
from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import set_up_process
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.processes import wait_for_processes
from semiovs_jax.runtime.profile import Profile
from semiovs_jax.runtime.provenance import config_as_json
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, put_state, shard_batch, share_state, with_sharding
from semiovs_jax.runtime.workdir import check_workdir
from semiovs_jax.train_state import TrainState, count_parameters
from semiovs_jax.train_step import StepSpec, make_after_evaluation, make_train_step

_logger = logging.getLogger(__name__)


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | Path, fork_from: str | Path | None = None
) -> signal.Signals | None:
    """Trains, labels, evaluates and saves; goes on where a checkpoint in `workdir` ends.

    The state after a step is a function of config, data and step alone, however often the run was stopped.

    Args:
      config: an experiment, see `configs/common.py`.
      workdir: folder of everything the run writes but OVS labels, which are in `config.ovs.labels_dir`. It belongs to
        this config and these data; a finished run is left as it is.
      fork_from: workdir of another run, or one of its checkpoints, whose state and step a new run starts from.

    Returns:
      The signal that came too late to stop the run, which is finished; None if there was none.

    Raises:
      InputError: something a person has to fix, found before training starts where it can be.
      Stopped: a signal has stopped the run; its checkpoint is saved.
    """
    goodput = Goodput()
    folder = open_run(config, workdir, fork_from)
    if folder.finished:
        folder.log_finished()
        return None
    mesh = make_mesh()
    if lacks_benchmark(config):
        refuse_config(config, devices=mesh.size)
    make_benchmark(config)
    run = inspect_config(config, devices=mesh.size).usable()
    mesh = share_state(mesh, config.train.fsdp)
    check_workdir(folder.path)
    folder.refuse_changed_images(run.labels)
    labelers = experiment.make_labelers(config, run.dataset, run.method, run.student)
    with goodput.phase("labeling"):
        prepare_labels(config, run, mesh)

    data = experiment.open_batches(config, run)
    steps = experiment.total_steps(config, data)
    eval_every = config.train.eval_every_steps or data.steps_per_epoch
    save_every = config.train.checkpoint_every_steps or data.steps_per_epoch

    spec = experiment.make_step_spec(
        config, run.dataset, run.method, run.student, labelers, steps=steps, steps_per_epoch=data.steps_per_epoch
    )
    weights = put_state({name: labeler.weights for name, labeler in labelers.items()}, mesh)
    after_evaluation = make_after_evaluation(spec, mesh)
    records = ValidationRecords(run.sources["val"], run.dataset, run.report.val_sizes)
    evaluator = Evaluator(
        spec.student,
        records,
        run.dataset,
        config.eval,
        mesh,
        size_multiple=run.student.size_multiple,
        num_threads=config.data.num_threads,
    )
    inspect = make_inspection(spec, mesh, config.train.panel_images)
    facts = {"backbone": config.model.backbone, "classes": run.dataset.num_classes, "evaluates": run.method.evaluates}
    meta = describe_run(config, facts)

    with Checkpointer(folder.path) as checkpointer, contextlib.closing(data.iterator):
        target = experiment.state_structs(run.student, spec, mesh)
        with goodput.phase("checkpoint"):
            restored = checkpointer.restore(target, data.iterator, folder.fork_from)
        state = restored.state if restored else experiment.initial_state(config, run.dataset, spec, mesh)
        first = int(state.step)
        record = folder.begin(first, data.steps_per_epoch)
        guard = Guard(config, checkpointer, restored.meta.get("bad_steps", ()) if restored else ())
        structs = with_sharding(experiment.batch_structs(config, run.method), batch_sharding(mesh))
        jitted = make_train_step(spec, mesh)
        with goodput.phase("compile"):
            train_step = compile_step(jitted, (state, structs, weights), mesh)
            flops = flops_per_device(jitted, (state, structs, weights), mesh)
            wait_for_processes("the step is compiled")
        started = time.perf_counter()

        with (
            Report(
                folder.path,
                run.dataset,
                total_steps=steps,
                images_per_step=config.batch_size * len(run.method.streams),
                log_every_steps=config.train.log_every_steps,
                restored_step=first,
                log_digest=restored.meta.get("metrics_log") if restored and not folder.fork_from else None,
                devices=list(mesh.devices.flat),
                flops_per_step=flops,
                goodput=goodput,
                writers=config.train.writers,
                config=config_as_json(config),
            ) as report,
            Profile(folder.path / "profile", config.train.profile_steps, first, steps) as profile,
            Preemption(first) as preemption,
        ):
            by_image: ImageScores | None = None  # of the last evaluation

            def evaluate(step: int, state: TrainState, batch: Any) -> tuple[TrainState, float | None]:
                nonlocal by_image
                by_image = None
                with goodput.phase("steps"):
                    guard.check(step, state)
                with goodput.phase("evaluation"):
                    if config.train.panel_images:
                        report.panel(step, inspect(state, batch, weights))
                    try:
                        scores, by_image = evaluator.run_by_image(*evaluated_weights(spec, state))
                    except NotFiniteLogitsError as error:
                        _logger.warning("step %d has no mIoU: %s", step, error)
                        return state, None
                    report.evaluation(step, scores)
                    return after_evaluation(state, scores.mean_iou), scores.mean_iou

            def save(step: int, state: TrainState, miou: float | None = None, wait: bool = False) -> None:
                with goodput.phase("steps"):
                    guard.check(step, state)
                with goodput.phase("checkpoint"):
                    written = {"bad_steps": list(guard.bad_steps), "metrics_log": report.log_digest()}
                    checkpointer.save(step, state, data.iterator, meta | written, miou)
                    if wait:
                        checkpointer.wait()

            report.start(
                Summary(
                    records=data.lengths | {"validation": len(records)},
                    batch_size=config.batch_size,
                    crop_size=config.data.crop_size,
                    steps_per_epoch=data.steps_per_epoch,
                    total_steps=steps,
                    method=run.method,
                    parameters=count_parameters(state.params),
                    mesh=mesh,
                    bytes_per_device=bytes_per_device(train_step),
                    restored_step=first if restored else None,
                )
            )
            # Evaluation and saving come after the step whose state they see; the position of the data that is saved is
            # that of the next batch.
            metrics: Mapping[str, jax.Array] = {}
            for step in range(first + 1, steps + 1):
                profile.before(step, state)
                try:
                    with goodput.input(metrics):
                        batch = shard_batch(read_by_step(next(data.iterator), structs), mesh)
                except InputError as error:
                    if not preemption.pending or jax.process_count() > 1:
                        raise
                    save(step - 1, state, wait=True)
                    raise preemption.stopped(f"after step {step - 1} of {steps} ({error})") from error
                with goodput.phase("steps"):
                    state, metrics = train_step(state, batch, weights)
                    report.step(step, metrics)
                    guard.after_step(step, metrics)
                profile.after(step, metrics)

                miou = None
                evaluates = step % eval_every == 0 or step == steps
                if evaluates:
                    state, miou = evaluate(step, state, batch)

                leaving = preemption.reached(step)
                if evaluates or step % save_every == 0 or leaving:
                    save(step, state, miou, wait=leaving or step == steps)
                if leaving and step < steps:
                    raise preemption.stopped(f"after step {step} of {steps}")

            with goodput.phase("evaluation"):
                contents = gather(config, run, evaluator, evaluated_weights(spec, state), by_image)
            report.finish(
                evaluator.protocol,
                {
                    **record.facts(),
                    "steps": steps,
                    "seconds_since_start": round(time.perf_counter() - started, 1),
                    "bad_records": list(data.bad_records),
                    "bad_steps": guard.bad_steps,
                },
                contents,
            )
    return preemption.received


def train(config: ml_collections.ConfigDict | str, workdir: str | Path, fork_from: str | Path | None = None) -> None:
    """Trains, labels, evaluates and saves, as `python -m semiovs_jax.main` does; continues a run that was stopped.

    Args:
      config: an experiment, or as --config names it: "configs/voc.py:92,prevmatch".
      workdir: folder of everything the run writes but OVS labels, which are in `config.ovs.labels_dir`. It belongs to
        this config and these data; a finished run is left as it is.
      fork_from: workdir of another run, or one of its checkpoints, whose state and step a new run starts from.

    Raises:
      InputError: something a person has to fix, found before training starts where it can be.
      Stopped: a signal has stopped the run; its checkpoint is saved.
    """
    set_up_process()
    train_and_evaluate(load_config(config) if isinstance(config, str) else config, workdir, fork_from)


def read_by_step(batch: Mapping[str, Any], structs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a batch that the step reads: those in `experiment.batch_structs`."""
    return {stream: {name: batch[stream][name] for name in fields} for stream, fields in structs.items()}


def evaluated_weights(spec: StepSpec, state: TrainState) -> tuple[Any, Any]:
    """(params, batch_stats) that the method evaluates: the student's, or a labeler's."""
    name = spec.method.evaluates
    if name == STUDENT:
        return state.params, state.batch_stats
    return spec.labelers[name].student_weights(state.labeler(name))


make_callable(__name__, train)
