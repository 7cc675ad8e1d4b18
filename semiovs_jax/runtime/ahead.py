"""Compiles a train step ahead of time for devices that need not be there, and reports memory, FLOPs and collectives."""

import collections
import contextlib
import importlib.util
import os
import re
import time
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from semiovs_jax.runtime import hlo

_GIB = 2**30


# HBM of one device, by jax.Device.device_kind; cloud.google.com/tpu/docs/system-architecture-tpu-vm
_HBM_BYTES = {"TPU v5 lite": 16 * _GIB, "TPU v5": 95 * _GIB, "TPU v6 lite": 32 * _GIB}


_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


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
      total: peak of a device.
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
    total: int
    flops: float
    collectives: tuple[hlo.Collective, ...]
    faults: tuple[str, ...]


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


def compile_step(step: Any, arguments: tuple[Any, ...], mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a jitted step.

    Args:
      step: what `jax.jit` returned.
      arguments: its arguments, or shape structs with shardings.
      mesh: the devices.

    Raises:
      InputError: the compiler found that the step does not fit into the devices' memory.
    """
    try:
        return cast(jax.stages.Wrapped, step).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"the step does not fit into {mesh.devices.size} x {mesh.devices.flat[0].device_kind}: "
            f"{str(error).splitlines()[0]}\n"
            "pass a smaller --config.batch_size, --config.model.dtype=bfloat16 or --config.model.remat=True"
        ) from error


def bytes_per_device(compiled: jax.stages.Compiled) -> int:
    """Peak memory of a device in a compiled step, its program included."""
    memory = cast(Any, compiled.memory_analysis())
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return used + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes


def report_step(step: Any, arguments: tuple[Any, ...], mesh: Mesh, *, parameters: int = 0) -> Report:
    """Compiles a jitted step over a mesh whose only axis splits the batch, and inspects the program.

    Args:
      step: as of `compile_step`.
      arguments: as of `compile_step`.
      mesh: the devices.
      parameters: reported as it is.

    Raises:
      InputError: as `compile_step`.
    """
    start = time.monotonic()
    compiled = compile_step(step, arguments, mesh)
    seconds = time.monotonic() - start
    memory, cost = cast(Any, compiled.memory_analysis()), compiled.cost_analysis() or {}
    instructions = hlo.parse_instructions(compiled.as_text() or "")
    return Report(
        seconds=seconds,
        devices=mesh.devices.size,
        device_kind=mesh.devices.flat[0].device_kind,
        parameters=parameters,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        total=bytes_per_device(compiled),
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
