"""A run from its inputs to its final table."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from data_pipelines.checking.inputs import check_inputs, check_workdir
from data_pipelines.datasets import load_dataset
from data_pipelines.errors import InputError
from data_pipelines.pipeline import make_train_iterator, validation_records
from data_pipelines.shapes.benchmark import write_shapes
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run
from semiovs_jax.evaluation.evaluator import Evaluator, check_evaluation
from semiovs_jax.initial import initial_weights
from semiovs_jax.labelers import OVS
from semiovs_jax.methods import make_method
from semiovs_jax.ovs import build_ovs
from semiovs_jax.ovs.labeling.images import label_images, labels_complete
from semiovs_jax.recipe import (
    batch_structs,
    build_frozen_labelers,
    make_recipe,
    make_student,
    needs_ovs,
    total_steps,
)
from semiovs_jax.reporting import Report, Summary
from semiovs_jax.reporting.inspection import make_inspection
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, replicated, shard_batch
from semiovs_jax.train_state import TrainState, count_parameters
from semiovs_jax.train_step import TrainStep, make_train_step

_logger = logging.getLogger(__name__)


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains, labels, evaluates and saves; goes on where a checkpoint in `workdir` ends.

    The state after a step is a function of config, data and step alone, however often the run was stopped.

    Args:
      config: an experiment, see `configs/common.py`.
      workdir: folder of everything the run writes but OVS labels, which lie in `config.ovs.labels_dir`.

    Raises:
      InputError: something a person has to mend, found before training starts where it can be.
    """
    workdir = check_workdir(workdir)
    mesh = _mesh(config)
    make_benchmark(config)
    found = check_inputs(config)
    records = validation_records(config.data)
    check_evaluation(config.eval, records.sizes())
    dataset = load_dataset(config.data.dataset)
    method = make_method(config.method)
    student = make_student(config)
    params, batch_stats = initial_weights(config, student)
    frozen = prepare_labelers(config, mesh)

    data = make_train_iterator(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        streams=method.streams,
        ood_labels_dir=config.ovs.labels_dir if needs_ovs(config, method, "cached") else None,
        ood_confidence=method.reads_ovs_confidence,
        ood_as_unlabeled=config.method.ood == "unlabeled",
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    steps = total_steps(config, data.steps_per_epoch)
    _refuse_seeing_twice(config, steps, data.steps_at_most)
    eval_every = config.train.eval_every_steps or data.steps_per_epoch
    save_every = config.train.checkpoint_every_steps or data.steps_per_epoch

    recipe = make_recipe(config, student, steps, data.steps_per_epoch, frozen)
    state = TrainState.create(params, batch_stats, recipe.optimizer, method.bank_capacity)
    state = jax.device_put(state, replicated(mesh))
    frozen_weights = jax.device_put({name: model.weights for name, model in frozen.items()}, replicated(mesh))
    offer_snapshot = jax.jit(TrainState.offer_snapshot, donate_argnums=0, out_shardings=replicated(mesh))
    evaluator = Evaluator(recipe.student, records, dataset, config.eval, mesh, size_multiple=student.size_multiple)
    inspect = make_inspection(recipe, mesh, config.train.panel_images)
    meta = describe_run(config, {"backbone": config.model.backbone, "classes": dataset.num_classes})

    with Checkpointer(workdir) as checkpointer, Preemption() as preemption, contextlib.closing(data.iterator):
        restored = checkpointer.restore(state, data.iterator)
        if restored is not None:
            state = restored.state
        first = int(state.step)
        train_step, memory = _compile(make_train_step(recipe, mesh), config, state, frozen_weights, mesh)
        started = time.perf_counter()

        with Report(
            workdir,
            dataset,
            total_steps=steps,
            images_per_step=config.batch_size * len(method.streams),
            log_every_steps=config.train.log_every_steps,
            restored_step=first,
        ) as report:
            report.start(
                Summary(
                    records=data.lengths | {"validation": found.counts["val"]},
                    batch_size=config.batch_size,
                    crop_size=config.data.crop_size,
                    steps_per_epoch=data.steps_per_epoch,
                    total_steps=steps,
                    method=method,
                    parameters=count_parameters(params),
                    mesh=mesh,
                    bytes_per_device=memory,
                    restored_step=first if restored else None,
                )
            )
            for step in range(first + 1, steps + 1):
                batch = shard_batch(next(data.iterator), mesh)
                state, metrics = train_step(state, batch, frozen_weights)
                report.step(step, metrics)

                miou = None
                if step % eval_every == 0 or step == steps:
                    if config.train.panel_images:
                        report.panel(step, inspect(state, batch, frozen_weights))
                    scores = evaluator.run(state.params, state.batch_stats)
                    report.evaluation(step, scores)
                    miou = scores.mean_iou
                    state = offer_snapshot(state, miou) if method.bank_capacity else state

                leaving = preemption.reached(step)
                if step % save_every == 0 or step == steps or miou is not None or leaving:
                    checkpointer.save(step, state, data.iterator, meta, miou)
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


def make_benchmark(config: ml_collections.ConfigDict) -> None:
    """Writes the embedded benchmark to `config.data.root` if the config asks for it and nothing is there.

    Raises:
      InputError: `config.data.make` is not "" or "shapes".
    """
    if config.data.make not in ("", "shapes"):
        raise InputError(f"config.data.make={config.data.make!r}: choose 'shapes', or '' to make nothing")
    if config.data.make and not Path(config.data.root).exists() and jax.process_index() == 0:
        _logger.info("writing the benchmark %r to %s", config.data.make, config.data.root)
        write_shapes(config.data.root)
    if jax.process_count() > 1:
        jax.experimental.multihost_utils.sync_global_devices("the benchmark is written")


def prepare_labelers(config: ml_collections.ConfigDict, mesh: Mesh) -> dict[str, OVS]:
    """Sees to it that all labels can be had: labels the OOD images where cached labels are missing.

    Returns:
      The models that label inside the train step, by labeler.

    Raises:
      InputError: the cached labels are another model's, or a model cannot be built.
    """
    method = make_method(config.method)
    frozen = build_frozen_labelers(config, method)
    if needs_ovs(config, method, "cached"):
        ovs = build_ovs(config.ovs, load_dataset(config.data.dataset).num_classes)
        if not labels_complete(config, ovs):
            _logger.info("labeling the OOD images in %s", config.data.ood_root)
            label_images(config, ovs, mesh)
    return frozen


def _mesh(config: ml_collections.ConfigDict) -> Mesh:
    mesh = make_mesh()
    if config.batch_size % mesh.size:
        raise InputError(
            f"config.batch_size={config.batch_size} cannot be split over {mesh.size} devices; "
            f"set it to a multiple of {mesh.size}"
        )
    return mesh


def _refuse_seeing_twice(config: ml_collections.ConfigDict, steps: int, steps_at_most: int | None) -> None:
    if steps_at_most is not None and steps > steps_at_most:
        raise InputError(
            f"config.data.ood_root={config.data.ood_root}: a source that is drawn once lasts for {steps_at_most} of "
            f"the {steps} steps; lower its weight, give it more images, or set config.train.steps"
        )


def _compile(
    step: Any, config: ml_collections.ConfigDict, state: TrainState, frozen_weights: Any, mesh: Mesh
) -> tuple[TrainStep, int]:
    """The compiled step, and the bytes it needs on a device."""
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
        batch_structs(config, make_method(config.method)),
    )
    compiled = step.lower(state, batch, frozen_weights).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return compiled, used - memory.alias_size_in_bytes
