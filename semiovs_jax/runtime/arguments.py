"""Command lines of commands that parse by argparse."""

import argparse
import os
from collections.abc import Sequence

from semiovs_jax.runtime.program import COMPLETES, program


def make_parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """A parser of a command.

    Args:
      module: name of the command's module.
      text: its docstring, which names the command as "python -m MODULE"; the help has it as the command was started.
    """
    text = (text or "").replace(f"python -m {module}", program(module))
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program(module), description=text, formatter_class=formatter)


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line, or, where a shell asks, prints the words that complete it and ends the process.

    What needs JAX is best imported after this.

    Args:
      parser: of the command that runs.
      argv: without the name of the program; `sys.argv[1:]` if None.
    """
    if COMPLETES in os.environ:
        from semiovs_jax.runtime.completion import complete

        complete(parser)
    return parser.parse_args(argv)
