"""A run from its inputs to its final table."""

import contextlib
import signal
from pathlib import Path

import ml_collections

from data_pipelines.pipeline import ValidationRecords
from semiovs_jax import experiment
from semiovs_jax.checkpoints.checkpointer import Checkpointer
from semiovs_jax.config_checks import inspect as inspect_config
from semiovs_jax.config_checks import refuse_config
from semiovs_jax.embedded_benchmark import lacks_benchmark, make_benchmark
from semiovs_jax.evaluation.evaluator import Evaluator
from semiovs_jax.guard import Guard
from semiovs_jax.ood_labels import prepare_labels
from semiovs_jax.reporting import Report, Summary
from semiovs_jax.reporting.goodput import Goodput
from semiovs_jax.reporting.run_page import gather
from semiovs_jax.runs.folder import RunFolder, open_run
from semiovs_jax.runtime.ahead import bytes_per_device, compile_step, flops_per_device
from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import set_up_process
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.processes import wait_for_processes
from semiovs_jax.runtime.profile import Profile
from semiovs_jax.runtime.provenance import config_as_json
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, put_state, share_state, with_sharding
from semiovs_jax.runtime.workdir import check_workdir
from semiovs_jax.train_loop import RunParts, TrainLoop, evaluated_weights
from semiovs_jax.train_state import count_parameters
from semiovs_jax.train_step import make_train_step


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
    parts = _assemble(config, folder, goodput)
    run, mesh, spec = parts.experiment, parts.mesh, parts.spec

    with Checkpointer(folder.path) as checkpointer, contextlib.closing(parts.data.iterator):
        target = experiment.state_structs(run.student, spec, mesh)
        with goodput.phase("checkpoint"):
            restored = checkpointer.restore(target, parts.data.iterator, folder.fork_from)
        state = restored.state if restored else experiment.initial_state(config, run.dataset, spec, mesh)
        first = int(state.step)
        record = folder.begin(first, parts.data.steps_per_epoch)
        jitted = make_train_step(spec, mesh)
        with goodput.phase("compile"):
            train_step = compile_step(jitted, (state, parts.batch_structs, parts.weights), mesh)
            flops = flops_per_device(jitted, (state, parts.batch_structs, parts.weights), mesh)
            wait_for_processes("the step is compiled")

        with (
            Report(
                folder.path,
                run.dataset,
                total_steps=parts.steps,
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
            Profile(folder.path / "profile", config.train.profile_steps, first, parts.steps) as profile,
            Preemption(first) as preemption,
        ):
            report.start(
                Summary(
                    records=parts.data.lengths | {"validation": len(parts.evaluator.records)},
                    batch_size=config.batch_size,
                    crop_size=config.data.crop_size,
                    steps_per_epoch=parts.data.steps_per_epoch,
                    total_steps=parts.steps,
                    method=run.method,
                    parameters=count_parameters(state.params),
                    mesh=mesh,
                    bytes_per_device=bytes_per_device(train_step),
                    restored_step=first if restored else None,
                )
            )
            guard = Guard(config, checkpointer, restored.meta.get("bad_steps", ()) if restored else ())
            loop = TrainLoop(config, parts, train_step, checkpointer, guard, report, profile, preemption, goodput)
            state = loop.run(state, first)
            with goodput.phase("evaluation"):
                contents = gather(config, run, parts.evaluator, evaluated_weights(spec, state), loop.by_image)
            report.finish(
                parts.evaluator.protocol,
                {
                    **record.facts(),
                    "steps": parts.steps,
                    "seconds_since_start": round(sum(goodput.seconds().values()), 1),
                    "bad_records": list(parts.data.bad_records),
                    "bad_steps": guard.bad_steps,
                },
                contents,
            )
    return preemption.received


def _assemble(config: ml_collections.ConfigDict, folder: RunFolder, goodput: Goodput) -> RunParts:
    """Checks everything that the config names, labels the OOD images, and opens the data."""
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
    spec = experiment.make_step_spec(
        config, run.dataset, run.method, run.student, labelers, steps=steps, steps_per_epoch=data.steps_per_epoch
    )
    evaluator = Evaluator(
        spec.student,
        ValidationRecords(run.sources["val"], run.dataset, run.report.val_sizes),
        run.dataset,
        config.eval,
        mesh,
        size_multiple=run.student.size_multiple,
        num_threads=config.data.num_threads,
    )
    return RunParts(
        experiment=run,
        mesh=mesh,
        spec=spec,
        weights=put_state({name: labeler.weights for name, labeler in labelers.items()}, mesh),
        data=data,
        batch_structs=with_sharding(experiment.batch_structs(config, run.method), batch_sharding(mesh)),
        steps=steps,
        evaluator=evaluator,
    )


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


make_callable(__name__, train)
