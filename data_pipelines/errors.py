"""Errors in the user's input: the exception, and one fault of a list."""

from collections.abc import Sequence
from typing import NamedTuple


class InputError(ValueError):
    """Invalid input that the user has to fix: a file, a config value or a set of weights.

    The message names the file or config key, what was found, what was expected, and what to do. The command line
    prints it without a traceback and exits with status 2.
    """


class Fault(NamedTuple):
    """A fault of one file, where all faults are collected before an error is raised.

    Attributes:
        kind: Faults of one kind are reported together: "unreadable", or the reason why a readable file is invalid.
        file: Name of the file.
        message: Names the file, what was found, and what to do.
    """

    kind: str
    file: str
    message: str


def first_few(faults: Sequence[str], limit: int = 5) -> str:
    """Joins the first `limit` messages to one line, and adds the number of the others."""
    more = f"; and {len(faults) - limit} more" if len(faults) > limit else ""
    return "; ".join(faults[:limit]) + more
