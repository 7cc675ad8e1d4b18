"""Config in, parts of a run out. Beside `config_checks` and `runs`, the only reader of the whole config.

Everything below takes parts: dataset facts, opened sources, the method, the student, labelers, lengths.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.checking.report import DataReport
from data_pipelines.checking.survey import labels_dir_fault
from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import Faults, InputError
from data_pipelines.files import expand
from data_pipelines.labels.cache import LabelCache, open_label_cache
from data_pipelines.labels.external import open_external_labels
from data_pipelines.labels.manifest import labels_folder
from data_pipelines.labels.verify import Verified
from data_pipelines.loading.options import Options
from data_pipelines.loading.order import batches_at_most
from data_pipelines.loading.selection import Filter, select_images
from data_pipelines.loading.streams import open_config_split, train_sources
from data_pipelines.pipeline import TrainData, make_train_iterator, steps_per_epoch
from data_pipelines.sources.records import Source
from semiovs_jax.config_ranges import range_faults
from semiovs_jax.embedded_benchmark import lacks_benchmark, make_benchmark
from semiovs_jax.finite import not_finite
from semiovs_jax.initial import initial_weights
from semiovs_jax.labelers import Facts, Labeler, build_labelers
from semiovs_jax.methods import Method, make_unchecked, method_faults
from semiovs_jax.models import Functional, Student, build_student, student_faults
from semiovs_jax.optim import learning_rate_schedules, make_optimizer, optimizer_faults
from semiovs_jax.runtime.sharding import batch_sharding, fsdp_fault, put_state, sharded_structs, with_sharding
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import StepSpec


class Experiment(NamedTuple):
    """The parts of a run that can be used.

    Attributes:
      dataset: its classes.
      method: the table of terms.
      options: how training records are read and shown.
      student: its shapes alone.
      sources: the splits that the method reads, opened once.
      report: what they hold.
      labels: the state of the cached labels of the OOD images; None where the method reads none.
    """

    dataset: DatasetInfo
    method: Method
    options: Options
    student: Student
    sources: Mapping[str, Source]
    report: DataReport
    labels: Verified | None = None


class Names(NamedTuple):
    """The parts that a config names; None for a name that is unknown.

    Attributes:
      dataset: its classes.
      method: the table of terms.
      student: its shapes alone.
    """

    dataset: DatasetInfo | None
    method: Method | None
    student: Student | None

    def usable(self, faults: Faults) -> tuple[DatasetInfo, Method, Student]:
        """The parts, if there are no faults; otherwise raises one `InputError` with all of them."""
        faults.refuse()
        assert self.dataset is not None
        assert self.method is not None
        assert self.student is not None
        return self.dataset, self.method, self.student


def settle_names(config: ml_collections.ConfigDict, faults: Faults, *, devices: int | None = None) -> Names:
    """Looks up the names and checks the numbers of a config; needs no file but that of the dataset's classes.

    Args:
      config: the experiment.
      faults: where to add what is wrong.
      devices: number of devices that share a batch; None if unknown.

    Raises:
      InputError: numbers of another type than the config's.
    """
    faults.add(range_faults(config))
    faults.add(_length_faults(config))
    if devices is not None and config.batch_size > 0 and config.train.fsdp > 0:
        faults.add(_device_faults(config.batch_size, config.train.fsdp, devices))
    faults.add(method_faults(config.method))
    faults.add(student_faults(config.model))
    faults.add(optimizer_faults(config.optim))
    dataset = student = None
    with faults.collected():
        dataset = dataset_info(config.data.dataset)
    if dataset is not None:
        with faults.collected():
            student = nnx.eval_shape(lambda: make_student(config, dataset))
    return Names(dataset, make_unchecked(config.method), student)


def _device_faults(batch_size: int, fsdp: int, devices: int) -> Iterator[str]:
    """What the devices cannot divide."""
    if batch_size % devices:
        yield (
            f"config.batch_size={batch_size} cannot be split over {devices} devices; set it to a positive "
            f"multiple of {devices}, such as --config.batch_size={max(1, round(batch_size / devices)) * devices}"
        )
    if fault := fsdp_fault(fsdp, devices):
        yield fault


def _length_faults(config: ml_collections.ConfigDict) -> Iterator[str]:
    """What is wrong with lengths that depend on each other."""
    if config.data.make not in ("", "shapes"):
        yield f"config.data.make={config.data.make!r}: choose 'shapes', or '' to make nothing"
    train = config.train
    if train.steps == train.epochs == 0:
        yield "config.train.steps=0 and config.train.epochs=0 make no step; set one of them to a positive number"


def read_sections(config: ml_collections.ConfigDict) -> Callable[[str], Any]:
    """The function from a section's dotted name to the section."""
    return lambda name: operator.attrgetter(name)(config)


def make_student(config: ml_collections.ConfigDict, dataset: DatasetInfo) -> Student:
    """The student of a config with random weights; inside `nnx.eval_shape`, its shapes alone.

    Raises:
      InputError: an unknown backbone or dtype, or one that cannot be evaluated as `config.eval` describes.
    """
    crop = config.data.crop_size
    student = build_student(config.model, dataset.num_classes, image_size=crop, rngs=nnx.Rngs(config.seed))
    if student.fixed_size and not config.eval.window:
        raise InputError(
            f"config.eval.window=0: config.model.backbone={config.model.backbone!r} is evaluated by windows; set it to "
            f"the crop's {crop}, config.eval.short_side to as much or more, and config.eval.stride"
        )
    return student


def make_labelers(
    config: ml_collections.ConfigDict, dataset: DatasetInfo, method: Method, student: Student
) -> dict[str, Labeler]:
    """All labelers but the student; reads the weights of those that label inside the step. Raises `InputError`."""
    function = Functional.create(student, config.model.matmul_precision)[0]
    facts = Facts(dataset, method, function, config.data.crop_size)
    return build_labelers(read_sections(config), facts)


def make_step_spec(
    config: ml_collections.ConfigDict,
    dataset: DatasetInfo,
    method: Method,
    student: Student,
    labelers: Mapping[str, Labeler],
    *,
    steps: int,
    steps_per_epoch: int,
) -> StepSpec:
    """The static side of a config's train step.

    Args:
      config: the experiment.
      dataset: its classes.
      method: the table of terms.
      student: its shapes.
      labelers: of `make_labelers`.
      steps: length of the run, on which the learning rate and the weights of terms depend.
      steps_per_epoch: updates in one pass over the unlabeled stream, on which the weights of terms depend.
    """
    return StepSpec(
        student=Functional.create(student, config.model.matmul_precision)[0],
        perturbed_channels=student.perturbed_channels,
        method=method,
        labelers=labelers,
        optimizer=make_optimizer(config.optim, steps, student.parameter_groups),
        ignore_index=dataset.ignore_index,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        learning_rates=learning_rate_schedules(config.optim, steps),
        parameter_groups=student.parameter_groups,
        skips_bad_updates=config.train.max_bad_steps > 0,
    )


def initial_state(config: ml_collections.ConfigDict, dataset: DatasetInfo, spec: StepSpec, mesh: Mesh) -> TrainState:
    """The state before the first update, on the devices.

    Raises:
      InputError: as `initial_weights`, or weights that are not finite.
    """
    params, batch_stats = initial_weights(config, dataset, make_student(config, dataset))
    state = put_state(TrainState.create(params, batch_stats, spec.optimizer, spec.labelers), mesh)
    if parts := not_finite(state):
        raise InputError(
            f"config.model.weights={config.model.weights!r}: the initial state holds a NaN or an infinity in "
            f"{', '.join(parts)}; convert the weights again"
        )
    return state


def state_structs(student: Student, spec: StepSpec, mesh: Mesh) -> TrainState:
    """The shapes of a state, with shardings; `student` may be shapes, too."""
    _, params, batch_stats = Functional.create(student)
    create = functools.partial(TrainState.create, optimizer=spec.optimizer, labelers=spec.labelers)
    return sharded_structs(jax.eval_shape(create, params, batch_stats), mesh)


def open_batches(config: ml_collections.ConfigDict, run: Experiment) -> TrainData:
    """The training batches of this process, at the first step.

    Raises:
      InputError: no OOD image is left by `config.data.ood_min_foreground`.
    """
    method, selection = run.method, None
    labels = open_ood_labels(config, method)
    if labels is not None:
        keys = Filter(config.data.ood_min_foreground, config.data.ood_repeat_threshold)
        selection = select_images(run.sources["ood"], keys, labels_folder(config.ovs.labels_dir), run.dataset)
    sources = train_sources(
        run.sources,
        method.streams,
        labels=labels,
        confidence=method.reads_ovs_confidence,
        ood_as_unlabeled=config.method.ood == "unlabeled",
    )
    return make_train_iterator(
        sources,
        run.dataset,
        run.options,
        batch_size=config.batch_size,
        seed=config.seed,
        selection=selection,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def open_ood_labels(config: ml_collections.ConfigDict, method: Method) -> LabelCache | None:
    """The labels of the OOD images; None if the method reads none or they are made inside the step.

    Raises:
      InputError: as `open_label_cache` and `open_external_labels`.
    """
    if "ood" not in method.streams or config.ovs.labels == "online":
        return None
    folder = labels_folder(config.ovs.labels_dir)
    return open_label_cache(folder) if config.ovs.labels == "cached" else open_external_labels(folder)


def total_steps(config: ml_collections.ConfigDict, data: TrainData) -> int:
    """Length of the run: `config.train.steps`, or where that is 0 `config.train.epochs` epochs.

    Raises:
      InputError: a source that is drawn once does not last as long.
    """
    steps = config.train.steps or config.train.epochs * data.steps_per_epoch
    if fault := _stream_fault(config, steps, data.steps_at_most):
        raise InputError(fault)
    return steps


def stream_fault(config: ml_collections.ConfigDict, sources: Mapping[str, Source]) -> str | None:
    """The fault of `total_steps`, as far as it is known before the OOD images have labels by which to select them."""
    steps = config.train.steps
    if not steps:
        lengths = {name: len(source) for name, source in sources.items()}
        steps = config.train.epochs * steps_per_epoch(lengths, config.batch_size)
    return _stream_fault(config, steps, batches_at_most(sources["ood"], config.batch_size))


def _stream_fault(config: ml_collections.ConfigDict, steps: int, at_most: int | None) -> str | None:
    if at_most is None or steps <= at_most:
        return None
    return (
        f"config.data.ood_root={config.data.ood_root}: a source that is drawn once lasts for {at_most} of the {steps} "
        "steps; lower its weight, give it more images, or set config.train.steps"
    )


def batch_structs(config: ml_collections.ConfigDict, method: Method) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The part of a training batch that a step reads; see `data_pipelines.pipeline.make_train_iterator`."""
    count, size = config.batch_size, config.data.crop_size
    plane = (count, size, size)
    fields = {
        "image": jax.ShapeDtypeStruct((*plane, 3), np.uint8),
        "valid": jax.ShapeDtypeStruct(plane, np.bool_),
    }
    label = {"label": jax.ShapeDtypeStruct(plane, np.uint8)}
    confidence = {"confidence": jax.ShapeDtypeStruct(plane, np.uint8)}
    extra = {"labeled": label}
    if config.ovs.labels != "online":
        extra["ood"] = label | (confidence if method.reads_ovs_confidence else {})
    return {stream: fields | extra.get(stream, {}) for stream in method.streams}


class Arguments(NamedTuple):
    """The arguments of a train step as shape structs with shardings: its state, its batch, the labelers' weights."""

    state: TrainState
    batch: dict[str, dict[str, jax.ShapeDtypeStruct]]
    weights: dict[str, Any]


def abstract_inputs(config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[StepSpec, Arguments]:
    """The train step of a config on a mesh, without making a weight or opening an image.

    Only the weights of models that label inside the step are read: their shapes are not in the config.

    Raises:
      InputError: invalid config values, or a batch that the devices do not divide; all in one error.
    """
    faults = Faults()
    dataset, method, student = settle_names(config, faults, devices=mesh.size).usable(faults)
    labelers = make_labelers(config, dataset, method, student)
    # The run's length is a constant of the program; its value changes nothing that is reported.
    steps = config.train.steps or 1
    spec = make_step_spec(config, dataset, method, student, labelers, steps=steps, steps_per_epoch=1)
    weights = {name: labeler.weights for name, labeler in labelers.items()}
    return spec, Arguments(
        state_structs(student, spec, mesh),
        with_sharding(batch_structs(config, method), batch_sharding(mesh)),
        sharded_structs(weights, mesh),
    )


def open_ood(config: ml_collections.ConfigDict, faults: Faults) -> Source | None:
    """Opens the OOD images to label them; for the benchmark see `make_benchmark`.

    Args:
      config: the experiment.
      faults: where to add what is wrong with the images or with the place of their labels.

    Returns:
      The images; None if they cannot be opened.

    Raises:
      InputError: the faults so far, where the benchmark is missing: it is not written for an invalid config.
    """
    data, source = config.data, None
    if lacks_benchmark(config) and expand(data.ood_root).is_relative_to(expand(data.root)):
        faults.refuse()
        make_benchmark(config)
    with faults.collected():
        source = open_config_split(data, "ood")
    scanned = source is None or not source.prepared
    if scanned and (fault := labels_dir_fault(data, config.ovs.labels_dir)):
        faults.add([fault])
    return source
