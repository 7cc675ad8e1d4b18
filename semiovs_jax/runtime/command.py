"""Settings of the process that must stand before JAX is imported, and the frame of every command."""

import contextlib
import ctypes
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
from semiovs_jax.runtime.config_files import find_configs

# Hands XLA's CPU reductions and matrix products to a library: half the step time of batch normalization networks,
# see openxla's xla/debug_options_flags.
CPU_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"


# By names in the environment: numbers in glibc's malloc.h, and bytes. An array of a batch is smaller than the first.
_MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20), "MALLOC_TRIM_THRESHOLD_": (-1, 256 * 2**20)}


def tune_process() -> None:
    """Sets what makes this process and those that it starts faster; what the user's environment sets is left alone.

    XLA's CPU flags, where the CPU is what will be used: effective only before JAX starts its backends. And glibc keeps
    the memory of freed arrays for the next ones: a loader that gives it back after each image and asks for it again
    spends 8 % of its time on the page faults.
    """
    if "XLA_FLAGS" not in os.environ and _runs_on_cpu():
        os.environ["XLA_FLAGS"] = CPU_FLAGS
    for name, (parameter, value) in _MALLOC_SETTINGS.items():
        if name not in os.environ:
            os.environ[name] = str(value)  # which other processes read when they start
            with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
                ctypes.CDLL(None).mallopt(parameter, value)


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
    tune_process()
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
        rest = flags.FLAGS(find_configs(argv))
        _ = flags.FLAGS.config.is_locked  # a missing file is told only when its config is used
    except BrokenPipeError:  # of --help
        raise
    except flags.Error as error:
        if cause := _input_error(error):
            _fail(str(cause))
        return app.parse_flags_with_usage(argv)  # says how flags are written
    except Exception as error:  # whatever a config file raises
        if cause := _input_error(error):
            _fail(str(cause))
        _fail(f"--config: {type(error).__name__}: {error}; mend the config or the --config.KEY=VALUE flag")
    return rest


def _input_error(error: BaseException | None) -> InputError | None:
    """The first InputError in a chain: the flags library wraps what a config file raises, traceback and all."""
    found = None
    while error is not None:
        found = error if isinstance(error, InputError) else found
        error = error.__cause__ or error.__context__
    return found


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
