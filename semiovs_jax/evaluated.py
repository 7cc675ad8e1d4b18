"""The model of a config that its method evaluates, and its evaluation on the validation split."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Faults
from data_pipelines.loading.streams import open_config_split
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax.embedded_benchmark import lacks_benchmark, make_benchmark
from semiovs_jax.evaluation.evaluator import Evaluator, check_evaluation
from semiovs_jax.experiment import make_labelers, settle_names
from semiovs_jax.methods import STUDENT, Method
from semiovs_jax.models import Functional, Student
from semiovs_jax.runtime.sharding import sharded_structs


class Model(NamedTuple):
    """The model that the method evaluates, without data.

    Attributes:
      dataset: its classes.
      student: its shapes.
      function: the student as a pure function.
      target: shape structs of the part of the train state that has its weights.
      weights: (params, batch_stats) of such a part.
    """

    dataset: DatasetInfo
    student: Student
    function: Functional
    target: dict[str, Any]
    weights: Callable[[Mapping[str, Any]], tuple[Any, Any]]


def open_model(config: ml_collections.ConfigDict, mesh: Mesh) -> Model:
    """The model of a config that the method evaluates: the student, or a labeler's.

    Raises:
      InputError: invalid config values, all in one error.
    """
    faults = Faults()
    names = settle_names(config, faults)
    with faults.collected():
        check_evaluation(config.eval, (), names.student.size_multiple if names.student else 1)
    return _evaluated_model(config, names.usable(faults), mesh)


def _evaluated_model(
    config: ml_collections.ConfigDict, names: tuple[DatasetInfo, Method, Student], mesh: Mesh
) -> Model:
    dataset, method, student = names
    function, params, batch_stats = Functional.create(student, config.model.matmul_precision)
    target: dict[str, Any] = {"params": params, "batch_stats": batch_stats}
    weights: Callable[[Any], Any] = lambda state: (state["params"], state["batch_stats"])  # noqa: E731
    if (name := method.evaluates) != STUDENT:
        labeler = make_labelers(config, dataset, method, student)[name]
        target = {"labelers": {name: jax.eval_shape(labeler.init, params, batch_stats)}}
        weights = lambda state: labeler.student_weights(state["labelers"][name])  # noqa: E731
    return Model(dataset, student, function, sharded_structs(target, mesh), weights)


class Evaluation(NamedTuple):
    """An evaluation of checkpoints of a run.

    Attributes:
      model: what is evaluated.
      evaluator: on the validation split.
    """

    model: Model
    evaluator: Evaluator


def open_evaluation(config: ml_collections.ConfigDict, mesh: Mesh) -> Evaluation:
    """Opens the validation split for the model that the method evaluates; for the benchmark see `make_benchmark`.

    Raises:
      InputError: invalid config values, or validation files that are missing or malformed; all in one error, but for
        files that must be opened.
    """
    faults, source = Faults(), None
    names = settle_names(config, faults)
    if lacks_benchmark(config):
        faults.refuse()
        make_benchmark(config)
    with faults.collected():
        source = open_config_split(config.data, "val")
    model = _evaluated_model(config, names.usable(faults), mesh)
    assert source is not None
    evaluator = Evaluator(
        model.function,
        ValidationRecords(source, model.dataset),
        model.dataset,
        config.eval,
        mesh,
        size_multiple=model.student.size_multiple,
        num_threads=config.data.num_threads,
    )
    return Evaluation(model, evaluator)
