"""Compiles a config's train step for TPUs that this machine lacks: memory, FLOPs, collectives, roofline.

    python -m semiovs_jax.compile --config=configs/voc92.py --topology=v5e:2x4
    python -m semiovs_jax.compile --all --topology=v5e:2x4 --topology=v5e:4x4

The second compiles each method of every published config, one after the other, and predicts its step on larger pods.
Topologies are those of libtpu (v5e:2x2, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ...), and cpu:N for N fake devices. No
image is opened; no weights are read but those of models that label inside the step, whose shapes are not in the config.
Exit status 1 if the step contains what costs speed on an accelerator: host callbacks, float64, dynamic shapes,
collectives other than all-reduce; 2 if the config cannot be compiled, for example because the step does not fit into a
device.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags

from data_pipelines.errors import InputError
from data_pipelines.files import as_path
from semiovs_jax.runtime.command import run_command
from semiovs_jax.runtime.config_files import has_flag, published_rows
from semiovs_jax.runtime.program import config_flags

if TYPE_CHECKING:
    from semiovs_jax.runtime.ahead import Report

_TOPOLOGIES = ("v5e:2x4", "v5e:4x4")

_logger = logging.getLogger(__name__)


def compile_config(config: ml_collections.ConfigDict, topology: str) -> "Report":
    """Compiles the train step of `config` for `topology`.

    Raises:
      InputError: an unknown topology, an invalid config value, or a step that does not fit.
    """
    from semiovs_jax.experiment import abstract_inputs
    from semiovs_jax.runtime.ahead import report_step, topology_devices
    from semiovs_jax.runtime.sharding import make_mesh, share_state
    from semiovs_jax.train_state import count_parameters
    from semiovs_jax.train_step import make_train_step

    mesh = share_state(make_mesh(topology_devices(topology)), config.train.fsdp)
    spec, arguments = abstract_inputs(config, mesh)
    _logger.info("compiling for %d x %s, minutes for a large model", mesh.size, mesh.devices.flat[0].device_kind)
    images = config.batch_size * len(spec.method.streams)
    parameters = count_parameters(arguments.state.params)
    return report_step(make_train_step(spec, mesh), arguments, mesh, parameters=parameters, images=images)


def main(flag_values: Any) -> None:
    """Compiles, prints the table, and exits with status 1 if there are faults."""
    import jax

    from semiovs_jax.runtime.ahead import format_report
    from semiovs_jax.runtime.pods import write_report

    if flag_values.all:
        _compile_all(flag_values.topology or _TOPOLOGIES, as_path(flag_values.out, "--out"))
        return
    topology, *others = flag_values.topology or _TOPOLOGIES[:1]
    if others:
        raise InputError(f"--topology={topology} --topology={others[0]}: several need --all")
    # The host's own TPU, if it has one, is not needed, and looking for one takes minutes where there is none.
    jax.config.update("jax_platforms", "cpu")
    report = compile_config(flag_values.config, topology)
    if flag_values.json:
        write_report(
            report,
            [flag for flag in sys.argv[1:] if not flag.startswith("--json=")],
            as_path(flag_values.json, "--json"),
        )
    print(format_report(report))
    if report.faults:
        sys.exit(1)


def _compile_all(topologies: Sequence[str], folder: Path) -> None:
    """Compiles the published rows and prints their table; the exit status is the worst of theirs."""
    from semiovs_jax.runtime.pods import compile_rows, format_rows

    if has_flag("--config", sys.argv):
        raise InputError("--all compiles the published rows; leave out --config, or leave out --all")
    rows = compile_rows(published_rows(), topologies, config_flags(sys.argv[1:]), folder)
    print(format_rows(rows))
    if any(row.fault for row in rows):
        sys.exit(2)
    if any(row.report and row.report.faults for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_multi_string(
        "topology", None, "What to compile for: v5e:2x4 (the default), v5p:2x2x1, ..., or cpu:N. Several with --all."
    )
    flags.DEFINE_bool("all", False, "Compiles every published experiment, instead of --config, and prints a table.")
    flags.DEFINE_string(
        "out", "runs/compile", "With --all: folder of the reports; those that are there are not made again."
    )
    flags.DEFINE_string("json", "", "File that the report is written to, too.")
    default_config = "configs/voc92.py" if "--all" in sys.argv else ""  # checks the names of --config.KEY flags
    run_command(main, needs_workdir=False, joins_processes=False, default_config=default_config)
