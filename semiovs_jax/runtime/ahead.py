"""Compiles a train step ahead of time, without the target devices, and reports memory, FLOPs and collectives."""

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
from semiovs_jax.runtime.command import CPU_FLAGS
from semiovs_jax.runtime.flops import count_flops
from semiovs_jax.runtime.heap import return_free_memory
from semiovs_jax.runtime.roofline import CHIPS, peak_flops, roofline
from semiovs_jax.runtime.sharding import splits_state

# Without these, libtpu asks the network for this machine's TPU and complains if there is none.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}


@dataclass(frozen=True)
class Report:
    """The result of compiling a train step; sizes are in bytes per device.

    Attributes:
      seconds: compile time.
      devices: number of devices.
      device_kind: their kind.
      parameters: number of the student's scalars.
      images: of a step, over all devices; 0 if unknown.
      arguments: size of state, batch and OVS weights.
      outputs: size of the new state and the metrics.
      temporaries: size of all other buffers at the peak.
      donated: size of the arguments that the outputs reuse.
      code: size of the program.
      total: peak memory.
      flops: per device and step; the body of a loop counts once.
      counted: FLOPs of matrix products and convolutions of the traced step, by `count_flops`; 0 for unknown chips.
      bytes_accessed: in the device's memory per step, as the compiler counts them.
      collectives: of one step; one in a loop counts once.
      faults: see `hlo.find_faults`.
    """

    seconds: float
    devices: int
    device_kind: str
    parameters: int
    images: int
    arguments: int
    outputs: int
    temporaries: int
    donated: int
    code: int
    total: int
    flops: float
    counted: float
    bytes_accessed: float
    collectives: tuple[hlo.Collective, ...]
    faults: tuple[str, ...]


def topology_devices(name: str) -> list[jax.Device]:
    """Devices of a topology: descriptions of TPUs to compile for, or fake devices on this host's CPU.

    Args:
      name: libtpu's name of a topology, such as "v5e:2x4", for which this process must not have started a JAX backend;
        or "cpu:N".

    Raises:
      InputError: libtpu is missing or used by another process, the name is unknown, or there are fewer CPU devices.
    """
    if match := re.fullmatch(r"cpu:([1-9]\d*)", name):
        return _cpu_devices(int(match[1]))
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology={name}: compiling for TPU needs libtpu; run pip install '.[tpu]', or pass --topology=cpu:8"
        )
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    if os.environ.get("XLA_FLAGS") == CPU_FLAGS:
        del os.environ["XLA_FLAGS"]  # with them, programs keep barriers that the compiler for TPUs does not know
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise InputError(
                f"--topology={name}: another process uses libtpu, which allows one process at a time; wait until it "
                "ends, or remove /tmp/libtpu_lockfile if there is no such process"
            ) from error
        raise InputError(
            f"--topology={name}: {str(error).splitlines()[0]}; pass one such as v5e:2x2, v5e:2x4, v5e:4x4, "
            "v5p:2x2x1, or cpu:8"
        ) from error


def _cpu_devices(count: int) -> list[jax.Device]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has already started its backends
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(
            f"--topology=cpu:{count}: this process has only {len(devices)} CPU devices; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def compile_step(step: Any, arguments: tuple[Any, ...], mesh: Mesh) -> jax.stages.Compiled:
    """Compiles a jitted step.

    Args:
      step: the jitted step.
      arguments: its arguments, or shape structs with shardings.
      mesh: the devices.

    Raises:
      InputError: the step does not fit into the devices' memory.
    """
    try:
        compiled = cast(jax.stages.Wrapped, step).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"the train step does not fit into the memory of {mesh.devices.size} x "
            f"{mesh.devices.flat[0].device_kind}: "
            f"{str(error).splitlines()[0]}\n"
            "pass a smaller --config.batch_size, --config.model.dtype=bfloat16 or --config.model.remat=blocks"
        ) from error
    return_free_memory()
    return compiled


def flops_per_device(step: Any, arguments: tuple[Any, ...], mesh: Mesh) -> float | None:
    """FLOPs of a jitted step on one device, see `count_flops`.

    None where the peak of the devices is unknown: there is nothing to compare with, and counting takes seconds.

    Args:
      step: see `compile_step`.
      arguments: see `compile_step`; if it was called with the same, the step is not traced again.
      mesh: the devices.
    """
    if peak_flops(mesh.devices.flat[0].device_kind) is None:
        return None
    return count_flops(step, *arguments) / mesh.devices.size or None


def bytes_per_device(compiled: jax.stages.Compiled) -> int:
    """Peak memory of a device during a compiled step, in bytes, with the program."""
    memory = cast(Any, compiled.memory_analysis())
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return used + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes


def report_step(step: Any, arguments: tuple[Any, ...], mesh: Mesh, *, parameters: int = 0, images: int = 0) -> Report:
    """Compiles a jitted step for a mesh, and inspects the program.

    Args:
      step: see `compile_step`.
      arguments: see `compile_step`.
      mesh: the devices.
      parameters: number of the student's scalars, for the report.
      images: of a step, for the report.

    Raises:
      InputError: see `compile_step`.
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
        images=images,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        total=bytes_per_device(compiled),
        flops=float(cost.get("flops", 0.0)),
        counted=flops_per_device(step, arguments, mesh) or 0.0,
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        collectives=tuple(hlo.find_collectives(instructions)),
        faults=tuple(hlo.find_faults(instructions, data_parallel=not splits_state(mesh))),
    )


def format_report(report: Report) -> str:
    """Formats the report as a table of text."""
    sizes = {
        "arguments": report.arguments,
        "outputs": report.outputs,
        "temporaries": report.temporaries,
        "program": report.code,
        "donated (outputs in arguments)": -report.donated,
        "total": report.total,
    }
    rows = [("memory per device", "MiB"), *((f"  {name}", f"{size / 2**20:,.1f}") for name, size in sizes.items())]
    if chip := CHIPS.get(report.device_kind):
        rows.append((f"  of {chip.hbm_bytes // 2**30} GiB HBM", f"{report.total / chip.hbm_bytes:.1%}"))
    rows.append(("GFLOPs per device and step", f"{report.flops / 1e9:,.1f}"))
    if report.counted:
        rows.append(("  of products, counted in its trace", f"{report.counted / 1e9:,.1f}"))
    rows.append(("GB accessed per device and step", f"{report.bytes_accessed / 1e9:,.1f}"))
    rows += _collective_rows(report)
    if chip:
        rows += _roofline_rows(report)
    width = max(len(name) for name, _ in rows) + 2
    head = (
        f"train step for {report.devices} x {report.device_kind}: {report.parameters / 1e6:,.1f} M parameters, "
        f"compiled in {report.seconds:.0f} s"
    )
    lines = [head, *(f"{name:<{width}}{value:>12}" for name, value in rows)]
    lines += [f"FAULT: the step {fault}" for fault in report.faults]
    if not report.faults:
        others = {counted.kind for counted in report.collectives} - {"all-reduce"}
        only = "" if others else ", no collectives but all-reduce"
        lines.append(f"no host callbacks, no float64, no dynamic shapes{only}")
    return "\n".join(lines)


def _collective_rows(report: Report) -> list[tuple[str, str]]:
    rows = [("collectives per step", "count, MiB")]
    counts = collections.Counter(c.kind for c in report.collectives)
    for kind, count in sorted(counts.items()):
        num_bytes = sum(c.num_bytes for c in report.collectives if c.kind == kind)
        rows.append((f"  {kind}", f"{count}, {num_bytes / 2**20:,.1f}"))
    return rows if counts else [*rows, ("  none", "0, 0.0")]


def _roofline_rows(report: Report) -> list[tuple[str, str]]:
    """Of all known chips: FLOPs and bytes are those of the program for the report's own."""
    rows = [("least time of a step, products in bfloat16", "ms, images/s")]
    reduced = [c.num_bytes for c in report.collectives]
    for chip in CHIPS.values():
        found = roofline(chip, report.flops, report.bytes_accessed, reduced, report.devices)
        rate = f"{report.images / found.seconds:,.0f}" if report.images else "-"
        rows.append(
            (f"  {report.devices} x {chip.name}, limited by {found.limit}", f"{1e3 * found.seconds:,.1f}, {rate}")
        )
    return rows
