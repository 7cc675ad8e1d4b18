"""How this process was started, for usage lines and for the command that comes next."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence

COMPLETES = "_ARGCOMPLETE"  # the variable by which argcomplete's shell functions ask for words instead of a run

_FLAG = re.compile("--?[a-z]")  # a negative number is none

SCRIPT, PACKAGE = "semiovs", "python -m semiovs_jax"


def program(module: str) -> str:
    """The command line that starts this command, without its arguments.

    Args:
      module: name of the command's module.

    Returns:
      "semiovs train" or "python -m semiovs_jax train" where `semiovs_jax.__main__` runs the module, else
      "python -m semiovs_jax.main".
    """
    return sys.argv[0] if _front() else f"python -m {module}"


def complete_with(action: argparse.Action, words: Callable[..., Iterable[str]]) -> None:
    """Sets the words by which a shell completes an argument.

    Args:
      action: the argument.
      words: is called with the keyword arguments of argcomplete's completers, such as `prefix`.
    """
    action.completer = words  # type: ignore[attr-defined]


def other_command(command: str, *arguments: str) -> str:
    """The command line of another command, started as this one was, to be copied to a shell.

    Args:
      command: its name, such as "train".
      *arguments: its arguments.
    """
    front = _front() or f"{shlex.quote(sys.orig_argv[0] or 'python')} -m semiovs_jax"
    return " ".join((front, command, *map(shlex.quote, arguments)))


def config_arguments() -> list[str]:
    """The arguments --config and --config.KEY of this command, as typed; "--config=FILE" if there are none."""
    return config_flags(sys.argv[1:]) or ["--config=FILE"]


def config_flags(arguments: Sequence[str]) -> list[str]:
    """Those of the arguments that are --config, --config.KEY, --noconfig.KEY, or the value after one of them."""
    found, is_value = [], False
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_flag = argument.startswith("-") and name.removeprefix("no").partition(".")[0] == "config"
        if is_flag or (is_value and not _FLAG.match(argument)):
            found.append(argument)
        is_value = is_flag and not equals
    return found


def _front() -> str:
    """What runs commands by their name; "" for a command that was started as a module."""
    front, _, _ = sys.argv[0].rpartition(" ")
    return front if front in (SCRIPT, PACKAGE) else ""
