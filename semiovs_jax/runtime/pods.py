"""Compiles many configs for several topologies, one after the other, and predicts their steps on pods of any size.

The prediction is the roofline of the compiled program, with as many images on each chip as it was compiled for.
"""

import dataclasses
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.files import whole_file
from semiovs_jax.runtime import hlo
from semiovs_jax.runtime.ahead import Report
from semiovs_jax.runtime.config_files import has_flag, load_config
from semiovs_jax.runtime.roofline import CHIPS, roofline

_POD = 256  # chips of a whole v5e or v6e pod

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One config compiled for one topology.

    Attributes:
      config: value of --config.
      topology: value of --topology.
      batch_size: images of each stream in a step; 0 if the flags set it.
      report: the result; None if the step cannot be compiled.
      fault: why not; "" if it can.
    """

    config: str
    topology: str
    batch_size: int
    report: Report | None
    fault: str = ""


def chips_of(topology: str) -> int:
    """Number of devices of a topology such as "v5e:2x4" or "cpu:8"; raises InputError if its name has none."""
    sides = topology.partition(":")[2].split("x")
    if not all(side.isdecimal() for side in sides):
        raise InputError(f"--topology={topology}: expected one such as v5e:2x4 or cpu:8")
    return math.prod(map(int, sides))


def compile_rows(configs: Sequence[str], topologies: Sequence[str], changes: Sequence[str], folder: Path) -> list[Row]:
    """Compiles each config for each topology, in processes of their own: libtpu keeps the memory of every program.

    The batch is the config's, or the next multiple of the number of devices. Reports are kept in `folder`; those that
    are there from the same command are not made again.

    Args:
      configs: values of --config.
      topologies: values of --topology.
      changes: further flags, such as "--config.model.dtype=bfloat16".
      folder: where the reports are kept; created if missing.

    Raises:
      InputError: an invalid topology, before anything is compiled.
    """
    chips = {topology: chips_of(topology) for topology in topologies}
    rows = []
    for topology, count in chips.items():
        for config in configs:
            batch_size = 0
            if not has_flag("--config.batch_size", changes):
                batch_size = count * math.ceil(load_config(config).batch_size / count)
            rows.append(_compile_row(Row(config, topology, batch_size, None), changes, folder))
    return rows


def _compile_row(row: Row, changes: Sequence[str], folder: Path) -> Row:
    name = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in (row.config, row.topology))
    file = folder / f"{name}.json"
    flags = [f"--config={row.config}", f"--topology={row.topology}", *changes]
    flags += [f"--config.batch_size={row.batch_size}"] * bool(row.batch_size)
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["flags"] == flags:
            return dataclasses.replace(row, report=read_report(kept["report"]))
    _logger.info("compiling %s", " ".join(flags))
    command = [sys.executable, "-m", "semiovs_jax.compile", *flags, f"--json={file}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not file.exists() or done.returncode not in (0, 1):  # 1: the step has faults, which the report names
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        fault = lines[-1].removeprefix("error: ") if lines else f"ended with status {done.returncode}"
        return dataclasses.replace(row, fault=fault)
    return dataclasses.replace(row, report=read_report(json.loads(file.read_text(encoding="utf-8"))["report"]))


def write_report(report: Report, flags: Sequence[str], file: Path) -> None:
    """Writes a report and the flags that it is for as JSON."""
    content = json.dumps({"flags": list(flags), "report": dataclasses.asdict(report)}, indent=2)
    with whole_file(file) as part:
        part.write_text(content + "\n", encoding="utf-8")


def read_report(content: dict[str, Any]) -> Report:
    """The report that `write_report` wrote, from its JSON."""
    collectives = tuple(hlo.Collective(**found) for found in content["collectives"])
    return Report(**{**content, "collectives": collectives, "faults": tuple(content["faults"])})


def format_rows(rows: Sequence[Row]) -> str:
    """A table in Markdown, and what could not be compiled."""
    head = (
        "config, topology",
        "images a chip",
        "memory, GiB",
        "GFLOPs (counted)",
        "GB accessed",
        "all-reduces, MiB",
        "step, ms",
        f"on {_POD} chips, ms",
        "efficiency",
        "compiled, s",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(_cells(row, row.report))} |" for row in rows if row.report]
    lines += [f"{row.config}, {row.topology}: {row.fault}" for row in rows if row.fault]
    lines += [
        f"FAULT: {row.config}, {row.topology}: the step {f}" for row in rows if row.report for f in row.report.faults
    ]
    return "\n".join(lines)


def _cells(row: Row, report: Report) -> Iterator[str]:
    yield f"{row.config}, {row.topology}"
    yield f"{report.images / report.devices:g}"
    yield f"{report.total / 2**30:.2f}"
    yield f"{report.flops / 1e9:,.0f} ({report.counted / 1e9:,.0f})"
    yield f"{report.bytes_accessed / 1e9:,.1f}"
    yield f"{len(report.collectives)}, {sum(found.num_bytes for found in report.collectives) / 2**20:,.0f}"
    if chip := CHIPS.get(report.device_kind):
        reduced = [found.num_bytes for found in report.collectives]
        here, pod = (
            roofline(chip, report.flops, report.bytes_accessed, reduced, devices) for devices in (report.devices, _POD)
        )
        yield from (f"{1e3 * found.seconds:,.1f} to {1e3 * found.apart:,.1f}" for found in (here, pod))
        yield f"{here.seconds / pod.seconds:.0%} to {here.apart / pod.apart:.0%}"
    else:
        yield from ("-", "-", "-")
    yield f"{report.seconds:.0f}"
