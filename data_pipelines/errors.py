"""What is wrong with input that a person can mend: the one error type, and one fault among many."""

from collections.abc import Sequence
from typing import NamedTuple


class InputError(ValueError):
    """Bad input: a file, a config value or a set of weights that a person has to mend.

    The message names the file or key, the value found, and what to do about it. The command line prints
    it without a traceback and exits with status 2.
    """


class Fault(NamedTuple):
    """What is wrong with one file, where all faults are gathered before any is raised.

    Attributes:
        kind: Groups like faults: "unreadable", or what is wrong with a file that can be read.
        file: The file's name.
        message: Names the file, what was found, and what to do about it.
    """

    kind: str
    file: str
    message: str


def first_few(faults: Sequence[str], limit: int = 5) -> str:
    """The first `limit` messages in one line, and how many there are in all where there are more."""
    more = f"; and {len(faults) - limit} more" if len(faults) > limit else ""
    return "; ".join(faults[:limit]) + more
