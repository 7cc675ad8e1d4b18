"""The words that complete a command line of `semiovs` in a shell, from the parsers of the commands; without JAX.

The shell function of argcomplete runs `semiovs` with the command line in environment variables, and reads words from
it. Commands that parse by argparse are completed by argcomplete alone; for flags of absl a parser is made of them.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import argcomplete
from absl import flags

from semiovs_jax.runtime.command_help import choices_of, keys_of, meaning_of, own_flags
from semiovs_jax.runtime.config_files import config_folder
from semiovs_jax.runtime.program import COMPLETES, complete_with

_Completer = Callable[..., Iterable[str]]


class _Finder(argcomplete.CompletionFinder):
    """Completes the name of a flag with a value to "--flag=", as documentation and messages write flags."""

    def filter_completions(self, completions: list[str]) -> list[str]:
        takes_value = {
            name
            for parser in self.active_parsers
            for action in parser._actions
            if action.nargs is None and not isinstance(action, argparse._SubParsersAction)
            for name in action.option_strings
        }
        found = []
        for word in super().filter_completions(completions):
            found.append(f"{word}=" if word in takes_value else word)
            self._display_completions[found[-1]] = self._display_completions.get(word, "")
        return found


def complete(parser: argparse.ArgumentParser) -> NoReturn:
    """Prints the words that complete the command line, and ends the process."""
    for action in parser._actions:
        action.metavar = action.metavar or action.dest  # argparse formats the usage in vain, which reads all choices
    _Finder()(parser, always_complete_options="long", default_completer=argcomplete.FilesCompleter())
    raise SystemExit(1)  # not reached: argcomplete ends the process


def words_before_cursor() -> list[str]:
    """The whole words of the command line before the one at the cursor."""
    return argcomplete.split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]


def complete_after(name: str) -> None:
    """Lets a parser of the command `name` complete what follows this name."""
    os.environ[COMPLETES] = "2"


def parser_of_names(summaries: Mapping[str, str]) -> argparse.ArgumentParser:
    """A parser of the names of commands.

    Args:
      summaries: what each command does, by its name.
    """
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for name, summary in summaries.items():
        commands.add_parser(name, help=_plain(summary))
    return parser


def parser_of_flags(argv: Sequence[str], run_config: str, keys: str) -> argparse.ArgumentParser:
    """A parser of the flags of the command that runs and of the keys of its config.

    Args:
      argv: the words of the command line so far; the keys are those of the config that they name.
      run_config: see `find_configs`.
      keys: see `format_help`.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in own_flags():
        _add_flag(parser, flag)
    described, values, _ = keys_of(argv, run_config, keys)
    for name, key in described.items():
        if not key.is_section:
            action = parser.add_argument(f"--config.{name}", help=_plain(key.comment))
            complete_with(action, _completer_of_value(values.get(name)))
    return parser


def _add_flag(parser: argparse.ArgumentParser, flag: flags.Flag) -> None:
    text = _plain(meaning_of(flag))
    if flag.boolean:
        parser.add_argument(f"--{flag.name}", f"--no{flag.name}", action="store_true", help=text)
        return
    action = parser.add_argument(f"--{flag.name}", help=text, choices=choices_of(flag) or None)
    if flag.name == "config":
        complete_with(action, _config_files)
    elif flag.name == "workdir":
        complete_with(action, argcomplete.DirectoriesCompleter())
    elif flag.flag_type() in ("int", "float"):
        complete_with(action, _nothing)


def _config_files(prefix: str, **_: Any) -> list[str]:
    """Config files of the user, and those of the project as "configs/NAME.py", which works in every folder."""
    project = [f"configs/{path.name}" for path in sorted(config_folder().glob("[a-z]*.py"))]
    return [*(name for name in project if name.startswith(prefix)), *argcomplete.FilesCompleter("py")(prefix)]


def _completer_of_value(value: Any) -> _Completer:
    if isinstance(value, bool):
        return lambda **_: ("true", "false")
    if isinstance(value, str) or value is None:
        return argcomplete.FilesCompleter()
    return lambda **_: (str(value).replace(" ", "").strip("()").removesuffix(","),)


def _nothing(**_: Any) -> tuple[str, ...]:
    return ()


def _plain(text: str | None) -> str:
    return (text or "").replace("%", "%%")
