"""The error type for invalid input, and a fault of one file among many."""

from collections.abc import Sequence
from typing import NamedTuple


class InputError(ValueError):
    """Invalid input that the user can fix: a file, a config value or a set of weights.

    The message has the file or key, what was found, what was expected, and what to do. Commands print it without a
    traceback and exit with status 2.
    """


class Fault(NamedTuple):
    """A fault of one file, collected until all files are checked.

    Attributes:
        kind: The kind of fault: "unreadable", or a fault of a readable file.
        file: The file's name.
        message: The file, what was found, and what to do.
    """

    kind: str
    file: str
    message: str


def first_few(faults: Sequence[str], limit: int = 5) -> str:
    """The first `limit` messages in one line, and the number of further ones."""
    more = f"; and {len(faults) - limit} more" if len(faults) > limit else ""
    return "; ".join(faults[:limit]) + more
