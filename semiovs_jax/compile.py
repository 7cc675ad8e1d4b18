"""Compiles a config's train step for devices nobody needs to have, and says what it takes.

    python -m semiovs_jax.compile --config=configs/voc92.py --topology=v5e:2x4

Topologies are those libtpu knows (v5e:2x2, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ...), and cpu:N for N fake devices.
No weights are made, no image is opened. Exit status 1 if the step contains what costs speed on an accelerator: host
callbacks, float64, dynamic shapes, collectives other than all-reduce; 2 if the config cannot be compiled, among
other reasons because the step does not fit into a device.
"""

import collections
import contextlib
import functools
import importlib.util
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import ml_collections
from absl import flags
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from semiovs_jax import hlo
from semiovs_jax.methods import make_method
from semiovs_jax.models import Functional
from semiovs_jax.recipe import batch_structs, build_frozen_labelers, make_recipe, make_student
from semiovs_jax.runtime import run_command
from semiovs_jax.sharding import batch_sharding, make_mesh, replicated
from semiovs_jax.train_state import TrainState, count_parameters
from semiovs_jax.train_step import Recipe, make_train_step

_GIB = 2**30
# HBM of one device, by jax.Device.device_kind; cloud.google.com/tpu/docs/system-architecture-tpu-vm
_HBM_BYTES = {"TPU v5 lite": 16 * _GIB, "TPU v5": 95 * _GIB, "TPU v6 lite": 32 * _GIB}

_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}

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


@dataclass(frozen=True)
class Report:
    """What compiling told; sizes are bytes a device.

    Attributes:
      seconds: of compiling.
      devices: how many.
      device_kind: their kind.
      parameters: scalars the student learns.
      arguments: of state, batch and OVS weights.
      outputs: of the new state and the metrics.
      temporaries: what else is alive at the peak.
      donated: of the arguments that the outputs reuse.
      code: of the program.
      flops: a device and step; the body of a loop counts once.
      collectives: those of one step; one in a loop counts once.
      faults: what must not be, see `hlo.find_faults`.
    """

    seconds: float
    devices: int
    device_kind: str
    parameters: int
    arguments: int
    outputs: int
    temporaries: int
    donated: int
    code: int
    flops: float
    collectives: tuple[hlo.Collective, ...]
    faults: tuple[str, ...]

    @property
    def total(self) -> int:
        """Peak bytes of a device."""
        return self.arguments + self.outputs + self.temporaries + self.code - self.donated


def topology_devices(name: str) -> list[jax.Device]:
    """Devices of a topology: descriptions to compile for, or this host's CPU split into fake ones.

    Raises:
      InputError: libtpu is not installed, or the name is not known.
    """
    if match := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return _cpu_devices(int(match[1]))
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={name}: compiling for TPU needs libtpu; run pip install '.[tpu]', or pass --topology=cpu:8"
        )
    # Keeps libtpu from asking the network about this machine's TPU, and from complaining that it has none.
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise InputError(
                f"--topology={name}: another process of this machine uses libtpu, which serves one at a time; wait "
                "for it to end, and if none runs, remove /tmp/libtpu_lockfile"
            ) from error
        raise InputError(
            f"--topology={name}: {str(error).splitlines()[0]}; pass one such as v5e:2x2, v5e:2x4, v5e:4x4, "
            "v5p:2x2x1, or cpu:8"
        ) from error


def _cpu_devices(count: int) -> list[jax.Device]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started: what it has must do
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(
            f"--topology=cpu:{count}: this process has {len(devices)} CPU devices; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


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


def compile_step(step: Any, arguments: tuple[Any, ...], mesh: Mesh, *, parameters: int = 0) -> Report:
    """Compiles a jitted step over a mesh whose only axis splits the batch, and inspects the program.

    Args:
      step: what `jax.jit` returned.
      arguments: its arguments as shape structs with shardings.
      mesh: the devices.
      parameters: reported as it is.

    Raises:
      InputError: the compiler found that the step does not fit into the devices' memory.
    """
    device = mesh.devices.flat[0]
    start = time.monotonic()
    try:
        compiled = cast(jax.stages.Wrapped, step).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"the step does not fit into {mesh.devices.size} x {device.device_kind}: {str(error).splitlines()[0]}\n"
            "pass a smaller --config.batch_size, --config.model.dtype=bfloat16 or --config.model.remat=True"
        ) from error
    seconds = time.monotonic() - start
    memory, cost = cast(Any, compiled.memory_analysis()), compiled.cost_analysis() or {}
    instructions = hlo.parse_instructions(compiled.as_text() or "")
    return Report(
        seconds=seconds,
        devices=mesh.devices.size,
        device_kind=device.device_kind,
        parameters=parameters,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        collectives=tuple(hlo.find_collectives(instructions)),
        faults=tuple(hlo.find_faults(instructions, data_parallel=True)),
    )


def format_report(report: Report) -> str:
    """The report as the table a person reads."""
    rows = [("memory a device", "MiB")]
    sizes = {
        "arguments": report.arguments,
        "outputs": report.outputs,
        "temporaries": report.temporaries,
        "program": report.code,
        "donated (outputs in arguments)": -report.donated,
        "total": report.total,
    }
    rows += [(f"  {name}", f"{size / 2**20:,.1f}") for name, size in sizes.items()]
    if hbm := _HBM_BYTES.get(report.device_kind):
        rows.append((f"  of {hbm // _GIB} GiB HBM", f"{report.total / hbm:.1%}"))
    rows.append(("GFLOPs a device and step", f"{report.flops / 1e9:,.1f}"))
    rows.append(("collectives a step", "count, MiB"))
    counts = collections.Counter(c.kind for c in report.collectives)
    for kind, count in sorted(counts.items()):
        num_bytes = sum(c.num_bytes for c in report.collectives if c.kind == kind)
        rows.append((f"  {kind}", f"{count}, {num_bytes / 2**20:,.1f}"))
    if not counts:
        rows.append(("  none", "0, 0.0"))
    width = max(len(name) for name, _ in rows) + 2
    head = (
        f"train step for {report.devices} x {report.device_kind}: {report.parameters / 1e6:,.1f} M parameters, "
        f"compiled in {report.seconds:.0f} s"
    )
    lines = [head, *(f"{name:<{width}}{value:>12}" for name, value in rows)]
    lines += [f"FAULT: the step {fault}" for fault in report.faults]
    if not report.faults:
        lines.append("no host callbacks, no float64, no dynamic shapes, no collectives but all-reduce")
    return "\n".join(lines)


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
