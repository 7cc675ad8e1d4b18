"""A run from its inputs to its final table."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from data_pipelines.pipeline import ValidationRecords
from semiovs_jax import experiment
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run
from semiovs_jax.config_checks import inspect as inspect_config
from semiovs_jax.evaluation.evaluator import Evaluator
from semiovs_jax.initial import initial_weights
from semiovs_jax.methods import STUDENT
from semiovs_jax.reporting import Report, Summary
from semiovs_jax.reporting.inspection import make_inspection
from semiovs_jax.runtime.ahead import bytes_per_device, compile_step
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, replicated, shard_batch, with_sharding
from semiovs_jax.runtime.workdir import check_workdir
from semiovs_jax.train_state import TrainState, count_parameters
from semiovs_jax.train_step import StepSpec, make_after_evaluation, make_train_step

_logger = logging.getLogger(__name__)


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains, labels, evaluates and saves; goes on where a checkpoint in `workdir` ends.

    The state after a step is a function of config, data and step alone, however often the run was stopped.

    Args:
      config: an experiment, see `configs/common.py`.
      workdir: folder of everything the run writes but OVS labels, which are in `config.ovs.labels_dir`.

    Raises:
      InputError: something a person has to fix, found before training starts where it can be.
    """
    workdir = check_workdir(workdir)
    mesh = make_mesh()
    experiment.make_benchmark(config)
    run = inspect_config(config, devices=mesh.size).usable()
    student = experiment.make_student(config, run.dataset)
    params, batch_stats = initial_weights(config, run.dataset, student)
    labelers = experiment.make_labelers(config, run.dataset, run.method, student)
    experiment.prepare_labels(config, run, mesh)

    data = experiment.open_batches(config, run)
    steps = experiment.total_steps(config, data)
    eval_every = config.train.eval_every_steps or data.steps_per_epoch
    save_every = config.train.checkpoint_every_steps or data.steps_per_epoch

    spec = experiment.make_step_spec(
        config, run.dataset, run.method, student, labelers, steps=steps, steps_per_epoch=data.steps_per_epoch
    )
    state = jax.device_put(TrainState.create(params, batch_stats, spec.optimizer, labelers), replicated(mesh))
    weights = jax.device_put({name: labeler.weights for name, labeler in labelers.items()}, replicated(mesh))
    after_evaluation = make_after_evaluation(spec, mesh)
    records = ValidationRecords(run.sources["val"], run.dataset, run.report.val_sizes)
    evaluator = Evaluator(
        spec.student,
        records,
        run.dataset,
        config.eval,
        mesh,
        size_multiple=student.size_multiple,
        num_threads=config.data.num_threads,
    )
    inspect = make_inspection(spec, mesh, config.train.panel_images)
    meta = describe_run(config, {"backbone": config.model.backbone, "classes": run.dataset.num_classes})

    with Checkpointer(workdir) as checkpointer, Preemption() as preemption, contextlib.closing(data.iterator):
        restored = checkpointer.restore(state, data.iterator)
        if restored is not None:
            state = restored.state
        first = int(state.step)
        structs = with_sharding(experiment.batch_structs(config, run.method), batch_sharding(mesh))
        train_step = compile_step(make_train_step(spec, mesh), (state, structs, weights), mesh)
        started = time.perf_counter()

        with Report(
            workdir,
            run.dataset,
            total_steps=steps,
            images_per_step=config.batch_size * len(run.method.streams),
            log_every_steps=config.train.log_every_steps,
            restored_step=first,
            log_digest=restored.meta.get("metrics_log") if restored else None,
        ) as report:
            report.start(
                Summary(
                    records=data.lengths | {"validation": len(records)},
                    batch_size=config.batch_size,
                    crop_size=config.data.crop_size,
                    steps_per_epoch=data.steps_per_epoch,
                    total_steps=steps,
                    method=run.method,
                    parameters=count_parameters(params),
                    mesh=mesh,
                    bytes_per_device=bytes_per_device(train_step),
                    restored_step=first if restored else None,
                )
            )
            # Evaluation and saving come after the step whose state they see; the position of the data that is saved is
            # that of the next batch.
            for step in range(first + 1, steps + 1):
                batch = shard_batch(next(data.iterator), mesh)
                state, metrics = train_step(state, batch, weights)
                report.step(step, metrics)

                miou = None
                if step % eval_every == 0 or step == steps:
                    if config.train.panel_images:
                        report.panel(step, inspect(state, batch, weights))
                    scores = evaluator.run(*evaluated_weights(spec, state))
                    report.evaluation(step, scores)
                    miou = scores.mean_iou
                    state = after_evaluation(state, miou)

                leaving = preemption.reached(step)
                if step % save_every == 0 or step == steps or miou is not None or leaving:
                    checkpointer.save(step, state, data.iterator, meta | {"metrics_log": report.log_digest()}, miou)
                if leaving and step < steps:
                    checkpointer.wait()
                    _logger.warning("stopped after step %d of %d; the same command goes on from there", step, steps)
                    return

            checkpointer.wait()
            report.finish(
                evaluator.protocol,
                {
                    "config_sha256": meta["config_sha256"],
                    "steps": steps,
                    "seconds_since_start": round(time.perf_counter() - started, 1),
                    "bad_records": list(data.bad_records),
                },
            )


def evaluated_weights(spec: StepSpec, state: TrainState) -> tuple[Any, Any]:
    """(params, batch_stats) that the method evaluates: the student's, or a labeler's."""
    name = spec.method.evaluates
    if name == STUDENT:
        return state.params, state.batch_stats
    return spec.labelers[name].student_weights(state.labeler(name))
