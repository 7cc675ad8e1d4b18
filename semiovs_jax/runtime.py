"""Settings of the process that must stand before JAX is imported, and the frame of every command."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipelines.errors import InputError

# Hands XLA's CPU reductions and matrix products to a library: half the step time of batch normalization networks,
# see openxla's xla/debug_options_flags.
CPU_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"


def tune_cpu() -> None:
    """Sets XLA's CPU flags where the CPU is what will be used; the user's own XLA_FLAGS are left alone.

    Has an effect only before JAX starts its backends.
    """
    if "XLA_FLAGS" not in os.environ and _runs_on_cpu():
        os.environ["XLA_FLAGS"] = CPU_FLAGS


def _runs_on_cpu() -> bool:
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    accelerators = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return not any(importlib.util.find_spec(name) for name in accelerators)


def run_command(command: Callable[[Any], None], *, needs_workdir: bool = True) -> None:
    """Parses --config and --workdir, then calls `command` with absl's flag values.

    An InputError, or a config that cannot be read, ends the process with its message, without a traceback, and
    status 2.
    """
    tune_cpu()
    config_flags.DEFINE_config_file("config", None, "An experiment, such as configs/demo.py.", lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_bool("distributed", False, "Joins the other hosts of a TPU pod or cluster before anything else.")
    if needs_workdir:
        flags.DEFINE_string("workdir", None, "Folder of everything a run writes; created if missing.")
        flags.mark_flag_as_required("workdir")

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        set_up_logging()
        if flags.FLAGS.distributed:
            import jax

            jax.distributed.initialize()
        try:
            command(flags.FLAGS)
        except InputError as error:
            _fail(str(error))

    app.run(main, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a config that is missing, fails to run, or lacks an overridden key is one message."""
    try:
        rest = app.parse_flags_with_usage(argv)
        _ = flags.FLAGS.config.is_locked  # a missing file is told only when its config is used
    except BrokenPipeError:  # of --help
        raise
    except Exception as error:  # whatever a config file raises
        _fail(f"--config: {type(error).__name__}: {error}; mend the config or the --config.KEY=VALUE flag")
    return rest


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def set_up_logging() -> None:
    """Shows this project's messages, plainly, and only the warnings of its libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("semiovs_jax", "data_pipelines"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)
