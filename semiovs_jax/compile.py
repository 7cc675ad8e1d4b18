"""Compiles a config's train step for TPUs that this machine lacks: memory, FLOPs, collectives, roofline.

    python -m semiovs_jax.compile --config=configs/voc92.py --topology=v5e:2x4

Topologies are those of libtpu (v5e:2x2, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x4, ...), and cpu:N for N fake devices. No
image is opened; no weights are read but those of models that label inside the step, whose shapes are not in the config.
Exit status 1 if the step contains what costs speed on an accelerator: host callbacks, float64, dynamic shapes,
collectives other than all-reduce; 2 if the config cannot be compiled, for example because the step does not fit into a
device.
"""

import logging
import sys
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags

from semiovs_jax.runtime.command import run_command

if TYPE_CHECKING:
    from semiovs_jax.runtime.ahead import Report

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

    # The host's own TPU, if it has one, is not needed, and looking for one takes minutes where there is none.
    jax.config.update("jax_platforms", "cpu")
    report = compile_config(flag_values.config, flag_values.topology)
    print(format_report(report))
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    flags.DEFINE_string("topology", "v5e:2x4", "What to compile for: v5e:2x4, v5p:2x2x1, ..., or cpu:N.")
    run_command(main, needs_workdir=False, alone="start it once: --topology names the hosts")
