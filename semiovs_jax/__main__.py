"""The command `semiovs`, or `python -m semiovs_jax`: runs the other commands by their name.

A command is a module of this folder with a function `main`. Its name is that of the file, or its `COMMAND`; its help is
the first sentence of the module. Nothing is imported to list the commands. A shell that completes a command line (see
`completion`) runs this, too.
"""

import ast
import importlib.abc
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from data_pipelines.command import closed_output_ends
from data_pipelines.errors import did_you_mean
from data_pipelines.startup import default_interrupt
from semiovs_jax.runtime.program import COMPLETES, PACKAGE, SCRIPT

_HELP = ("-h", "-help", "--help", "help")


class Command(NamedTuple):
    """A command.

    Attributes:
      module: full name of its module.
      summary: what it does, in one line.
    """

    module: str
    summary: str


def find_commands(folder: Path = Path(__file__).parent) -> dict[str, Command]:
    """The commands of a package by their names, sorted.

    Args:
      folder: the package.
    """
    found = {}
    for path in folder.glob("[a-z]*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            names = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
            name = ast.literal_eval(names["COMMAND"]) if "COMMAND" in names else path.stem
            found[name] = Command(f"{folder.name}.{path.stem}", _summary(ast.get_docstring(tree) or ""))
    return dict(sorted(found.items()))


def _summary(docstring: str) -> str:
    """The first line without what follows a colon, and without its example."""
    return re.split(r": |:? *`?python -m ", docstring.partition("\n")[0])[0].rstrip(".") + "."


def format_commands(commands: dict[str, Command], front: str) -> str:
    """The table of the commands."""
    width = max(map(len, commands))
    rows = (f"  {name:{width}}  {command.summary}" for name, command in commands.items())
    return "\n".join(
        (
            f"usage: {front} COMMAND [--FLAG=VALUE ...]",
            "",
            *rows,
            "",
            f"{front} COMMAND --help lists the flags of a command and the keys of its config.",
        )
    )


def run_module(module: str, argv: list[str]) -> None:
    """Runs a module as `python -m` does, with `argv` as `sys.argv`, its first item included.

    The module is `sys.modules["__main__"]`, which worker processes import again by its name.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not isinstance(spec.loader, importlib.abc.InspectLoader):
        raise ImportError(f"no module {module}")
    code = spec.loader.get_code(module)
    assert code is not None
    main_module = importlib.util.module_from_spec(spec)
    main_module.__name__ = "__main__"
    sys.modules["__main__"] = main_module
    sys.argv[:] = argv
    exec(code, main_module.__dict__)


def _complete(commands: dict[str, Command]) -> None:
    """Prints the words that complete a command line, and ends the process: names of commands, or what one takes."""
    from semiovs_jax.runtime.completion import complete, complete_after, parser_of_names, words_before_cursor

    name, *arguments = words_before_cursor()[1:] or [""]
    if name in commands:
        complete_after(name)
        run_module(commands[name].module, [f"{SCRIPT} {name}", *arguments])
    complete(parser_of_names({name: command.summary for name, command in commands.items()}))


def main() -> None:
    """Runs the command that `sys.argv` names, or prints the table of commands."""
    default_interrupt()
    front = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else PACKAGE
    name, *arguments = sys.argv[1:] or ["--help"]
    commands = find_commands()
    if COMPLETES in os.environ:
        _complete(commands)
    if name in _HELP:
        with closed_output_ends():
            print(format_commands(commands, front))
        return
    if name not in commands:
        there_are = f"there are {', '.join(commands)}"
        print(f"error: {front} {name}: no such command{did_you_mean(name, commands)}; {there_are}", file=sys.stderr)
        sys.exit(2)
    run_module(commands[name].module, [f"{front} {name}", *arguments])


if __name__ == "__main__":
    main()
