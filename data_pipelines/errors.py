"""What is wrong with input that a person can mend: the one error type, and one fault among many."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class InputError(ValueError):
    """Bad input: a file, a config value or a set of weights that a person has to mend.

    Every argument is one fault: it names the file or key, the value found, and what to do about it. The command line
    prints them, a line each, without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Faults:
    """Collects the faults of checks that do not depend on each other, so that all are told at once.

    Attributes:
        found: The faults, without repetitions, in order.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, faults: Iterable[str]) -> None:
        """Adds faults."""
        self.found += [fault for fault in dict.fromkeys(faults) if fault not in self.found]

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Leaves the body at its first `InputError` and adds what was wrong."""
        try:
            yield
        except InputError as error:
            self.add(map(str, error.args))

    def refuse(self) -> None:
        """Raises one `InputError` with all faults, if there are any."""
        if self.found:
            raise InputError(*self.found)


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
