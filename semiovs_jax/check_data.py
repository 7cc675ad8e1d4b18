"""Checks a config with its data and weights, and lists what to fix.

    python -m semiovs_jax.check_data --config=configs/custom.py

Looks at the config, all splits and labels, weights, vocabularies and cached OVS labels. It trains nothing, and writes
nothing but the report as JSON with --json=PATH, and the embedded benchmark where it is missing and the config asks for
it (config.data.make). The last line is "usable", with status 0, or "N fault(s)", with status 1. Faults are those that
training refuses. A config that cannot be read gives status 2. It runs in one process: start it on each host.
"""

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags as absl_flags

from data_pipelines.errors import InputError
from data_pipelines.files import as_path
from semiovs_jax.runtime.callable_module import make_callable
from semiovs_jax.runtime.command import run_command, set_up_process
from semiovs_jax.runtime.config_files import load_config
from semiovs_jax.runtime.program import config_arguments, other_command

if TYPE_CHECKING:
    from semiovs_jax.config_checks import Inspection

_SECTIONS = ("data", "method", "model", "ovs", "train", "eval")


def main(flags: Any) -> None:
    """Reports on `flags.config`; ends with status 1 where there is something to fix."""
    from semiovs_jax.reporting.data_report import format_report, report_as_json

    logger = logging.getLogger(__name__)
    found = _inspect(flags.config)
    print(format_report(found))
    if flags.json:
        try:
            as_path(flags.json, "--json").write_text(report_as_json(found), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json={flags.json}: cannot be written ({error.strerror or error})") from error
        logger.info("wrote %s", flags.json)
    if found.faults:
        sys.exit(1)
    logger.info("next: %s", other_command("train", *config_arguments(), "--workdir=RUN"))


def check_data(config: ml_collections.ConfigDict | str) -> str:
    """The report on a config, its weights and data, as the command prints it.

    Args:
      config: an experiment, or as --config names it: "configs/custom.py".

    Returns:
      The report. The last line is "usable" or the number of faults.

    Raises:
      InputError: the config cannot be read.
    """
    set_up_process()
    from semiovs_jax.reporting.data_report import format_report

    return format_report(_inspect(load_config(config) if isinstance(config, str) else config))


def _inspect(config: ml_collections.ConfigDict) -> "Inspection":
    from semiovs_jax.config_checks import inspect, refuse_config
    from semiovs_jax.embedded_benchmark import lacks_benchmark, make_benchmark

    if lacking := [section for section in _SECTIONS if section not in config]:
        raise InputError(f"--config has no section {', '.join(lacking)}; name an experiment, such as configs/custom.py")
    if lacks_benchmark(config):
        with contextlib.suppress(InputError):  # it is in the report
            refuse_config(config)
            make_benchmark(config)
    return inspect(config, thorough=True)


make_callable(__name__, check_data)

if __name__ == "__main__":
    absl_flags.DEFINE_string("json", "", "File to write the report to as JSON.")
    run_command(main, needs_workdir=False, joins_processes=False)
