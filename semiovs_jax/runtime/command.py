"""Process settings that must be set before JAX is imported, and the entry point of all commands."""

import contextlib
import ctypes
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipelines.command import NOTHING_WRITTEN, command_end
from data_pipelines.errors import InputError
from semiovs_jax.runtime.command_help import asks_for_help, format_help, refuse_flags
from semiovs_jax.runtime.config_files import config_value, find_configs, load_config
from semiovs_jax.runtime.config_keys import unknown_keys
from semiovs_jax.runtime.program import COMPLETES

# On the CPU, XLA then computes reductions and matrix products with a library, which halves the step time of networks
# with batch normalization, and keeps `jax.lax.optimization_barrier`; see openxla's xla/debug_options_flags.
CPU_FLAGS = (
    "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE "
    "--xla_disable_hlo_passes=cse_barrier_expander"
)

# By environment variable: the parameter's number in glibc's malloc.h, and bytes. Arrays of a batch are smaller than the
# first value, so they come from the heap.
_MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20), "MALLOC_TRIM_THRESHOLD_": (-1, 256 * 2**20)}


def tune_process() -> None:
    """Sets what makes this process and its subprocesses faster; variables of the user's environment are kept.

    XLA's CPU flags, if JAX will run on the CPU; they take effect only before JAX starts its backends. And settings of
    glibc's malloc that keep the memory of freed arrays for later ones: a loader that returns it to the system after
    each image spends 8 % of its time on page faults.
    """
    if "XLA_FLAGS" not in os.environ and _runs_on_cpu():
        os.environ["XLA_FLAGS"] = CPU_FLAGS
    for name, (parameter, value) in _MALLOC_SETTINGS.items():
        if name not in os.environ:
            os.environ[name] = str(value)  # for subprocesses
            with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library than glibc
                ctypes.CDLL(None).mallopt(parameter, value)


def _runs_on_cpu() -> bool:
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    accelerators = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
    return not any(importlib.util.find_spec(name) for name in accelerators)


def run_command(
    command: Callable[[Any], None],
    *,
    needs_workdir: bool = True,
    run_config: str = "",
    default_config: str = "",
    kept: str = NOTHING_WRITTEN,
    joins_processes: bool = True,
    has_shares: bool = False,
    keys: str = "common.py",
    config_help: str = "An experiment, such as configs/demo.py.",
) -> None:
    """Parses --config and --workdir, then calls `command` with absl's flag values.

    Where a shell asks for the words that complete the command line, prints them and ends (see `completion`).
    After an InputError, or with an invalid config, prints the message without a traceback and exits with status 2. With
    --distributed, processes that were started differently are refused, and the end of one process ends all. For signals
    see `command_end`, for --help `format_help`.

    Args:
      command: the command.
      needs_workdir: whether --workdir is required.
      run_config: the config file that is used with the argument --workdir where --config is not given; "" for none.
      default_config: the config file that is used where --config is not given; "" for none.
      kept: what the command leaves behind if a signal stops it, see `command_end`.
      joins_processes: whether several processes may run the command together, with --distributed.
      has_shares: whether --process_index and --process_count have a meaning of their own without --distributed.
      keys: the project's config file that describes the keys of the command's configs.
      config_help: what --config is.
    """
    tune_process()
    workdir = "Folder of everything a run writes; created if missing."
    if run_config:
        config_help += " The run's own if left out."
        workdir = "Workdir of a run, or one of its checkpoints."
    config_flags.DEFINE_config_file("config", None, config_help, lock_config=True)
    if not run_config:
        flags.mark_flag_as_required("config")
    if joins_processes:
        _define_process_flags()
    if needs_workdir:
        flags.DEFINE_string("workdir", None, workdir)
        flags.mark_flag_as_required("workdir")

    if COMPLETES in os.environ:
        from semiovs_jax.runtime.completion import complete, parser_of_flags

        complete(parser_of_flags(sys.argv, run_config, keys))

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"unexpected arguments: {' '.join(argv[1:])}; write flags as --NAME=VALUE, see --help")
        set_up_logging()
        if joins_processes and not flags.FLAGS.distributed:
            _refuse_process_flags(has_shares)
        if not joins_processes or not flags.FLAGS.distributed:
            command(flags.FLAGS)
            return
        from semiovs_jax.runtime.agreement import check_agreement
        from semiovs_jax.runtime.processes import EndTogether, join_processes

        join_processes(flags.FLAGS.coordinator_address, flags.FLAGS.process_index, flags.FLAGS.process_count)
        with EndTogether(kept) as processes:
            before_leaving.append(processes.stop)
            check_agreement(flags.FLAGS.config)
            command(flags.FLAGS)

    with command_end(kept) as before_leaving:
        configs = run_config, default_config
        app.run(main, flags_parser=functools.partial(_parse_flags, configs=configs, keys=keys))


def _define_process_flags() -> None:
    flags.DEFINE_bool("distributed", False, "Joins the other processes of the run first, on this host or others.")
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, where no launcher gives it.")
    flags.DEFINE_integer("process_index", None, "Number of this process, from 0, where no launcher gives it.")
    flags.DEFINE_integer("process_count", None, "Number of processes, where no launcher gives it.")


def _refuse_process_flags(has_shares: bool) -> None:
    names = ["coordinator_address", *(() if has_shares else ("process_index", "process_count"))]
    if given := [f"--{name}={flags.FLAGS[name].value}" for name in names if flags.FLAGS[name].value is not None]:
        raise InputError(f"{' '.join(given)}: needs --distributed")


def _parse_flags(argv: list[str], configs: tuple[str, str], keys: str) -> list[str]:
    """Parses the flags; --help, and a config that is missing, raises, or lacks an overridden key end the process."""
    if asks_for_help(argv):
        print(format_help(argv, configs[0], keys))
        sys.exit(0)
    try:
        rest = flags.FLAGS(find_configs(argv, *configs))
        _ = flags.FLAGS.config.is_locked  # a missing file raises only when its config is used
    except BrokenPipeError:  # of --helpfull
        raise
    except flags.Error as error:
        if cause := _input_error(error):
            _fail(str(cause))
        refuse_flags(argv)
        _fail(f"{error}; see --help")
    except Exception as error:  # a config file may raise anything
        if cause := _input_error(error):
            _fail(str(cause))
        if isinstance(error, AttributeError | KeyError | TypeError):
            _refuse_keys(argv, configs)
        _fail(f"--config: {type(error).__name__}: {error}; fix the config or the --config.KEY=VALUE flag")
    return rest


def _refuse_keys(argv: list[str], configs: tuple[str, str]) -> None:
    """Refuses --config.KEY flags whose key the config does not have; with an invalid config, does nothing."""
    faults: list[str] = []
    with contextlib.suppress(Exception):
        faults = unknown_keys(argv, load_config(config_value(find_configs(argv, *configs))))
    if faults:
        raise InputError(*faults)


def _input_error(error: BaseException | None) -> InputError | None:
    """The first InputError in a chain of exceptions: the flags library wraps what a config file raises."""
    found = None
    while error is not None:
        found = error if isinstance(error, InputError) else found
        error = error.__cause__ or error.__context__
    return found


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def set_up_logging() -> None:
    """Logs this project's messages without prefixes, and only warnings of absl."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("semiovs_jax", "data_pipelines", "__main__"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)


def set_up_process() -> None:
    """What commands do first, for functions that are called from Python: tunes the process, and logs as they do.

    Logging that the caller has set up stays as it is.
    """
    tune_process()
    if not logging.getLogger("semiovs_jax").hasHandlers():
        set_up_logging()
