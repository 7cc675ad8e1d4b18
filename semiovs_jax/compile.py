"""Compiles a config's train step for devices nobody needs to have, and says what it takes.

    python -m semiovs_jax.compile --config=configs/voc92.py --topology=v5e:2x4

Topologies are those libtpu knows (v5e:2x2, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ...), and cpu:N for N fake devices.
No weights are made, no image is opened. Exit status 1 if the step contains what costs speed on an accelerator: host
callbacks, float64, dynamic shapes, collectives other than all-reduce; 2 if the config cannot be compiled, among
other reasons because the step does not fit into a device.
"""

import functools
import logging
import sys
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from semiovs_jax.methods import make_method
from semiovs_jax.models import Functional
from semiovs_jax.recipe import batch_structs, build_frozen_labelers, make_recipe, make_student
from semiovs_jax.runtime.ahead import Report, compile_step, format_report, topology_devices
from semiovs_jax.runtime.command import run_command
from semiovs_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from semiovs_jax.train_state import TrainState, count_parameters
from semiovs_jax.train_step import Recipe, make_train_step

_logger = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """A train step and what it is called with, as shape structs with shardings.

    Attributes:
      recipe: the step's static side.
      state: TrainState of structs.
      batch: streams of structs, as `data_pipelines.pipeline` makes them.
      frozen_weights: of the models that label inside the step, structs by labeler.
    """

    recipe: Recipe
    state: TrainState
    batch: dict[str, dict[str, jax.ShapeDtypeStruct]]
    frozen_weights: dict[str, Any]


def abstract_inputs(config: ml_collections.ConfigDict, mesh: Mesh) -> Inputs:
    """The train step of a config on a mesh, without making a weight or opening an image.

    Only a config with models that label inside the step reads their weights, whose shapes are not in the config.

    Raises:
      InputError: a config value that is none, or a batch that the devices do not divide.
    """
    devices = mesh.devices.size
    if config.batch_size % devices:
        raise InputError(
            f"config.batch_size={config.batch_size} cannot be split over {devices} devices; "
            f"pass --config.batch_size={max(1, round(config.batch_size / devices)) * devices}"
        )
    student = nnx.eval_shape(lambda: make_student(config))
    _, params, batch_stats = Functional.create(student)
    method = make_method(config.method)
    frozen = build_frozen_labelers(config, method)
    # The run's length is a constant of the program; its value changes nothing that is reported.
    recipe = make_recipe(config, student, config.train.steps or 1, 1, frozen)
    everywhere = replicated(mesh)
    create = functools.partial(TrainState.create, optimizer=recipe.optimizer, bank_capacity=method.bank_capacity)
    state = jax.eval_shape(create, params, batch_stats)
    return Inputs(
        recipe,
        _structs(state, everywhere),
        _structs(batch_structs(config, method), batch_sharding(mesh)),
        {labeler: _structs(model.weights, everywhere) for labeler, model in frozen.items()},
    )


def _structs(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def compile_config(config: ml_collections.ConfigDict, topology: str) -> Report:
    """Compiles the train step of `config` for `topology`.

    Raises:
      InputError: a topology or config value that is none, or a step that does not fit.
    """
    mesh = make_mesh(topology_devices(topology))
    inputs = abstract_inputs(config, mesh)
    _logger.info("compiling for %d x %s, minutes for a large model", mesh.size, mesh.devices.flat[0].device_kind)
    return compile_step(
        make_train_step(inputs.recipe, mesh),
        (inputs.state, inputs.batch, inputs.frozen_weights),
        mesh,
        parameters=count_parameters(inputs.state.params),
    )


def main(flag_values: Any) -> None:
    """Compiles, prints the table, and exits with status 1 if there are faults."""
    # The host's own TPU, if it has one, is not needed, and looking for one takes minutes where there is none.
    jax.config.update("jax_platforms", "cpu")
    report = compile_config(flag_values.config, flag_values.topology)
    print(format_report(report))
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("topology", "v5e:2x4", "What to compile for: v5e:2x4, v5p:2x2x1, ..., or cpu:N.")
    run_command(main, needs_workdir=False)
