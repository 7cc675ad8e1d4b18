"""The error type for invalid input, a fault of one file among many, a collector of faults, and parts of messages."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class InputError(ValueError):
    """Invalid input that the user can fix: a file, a config value or a set of weights.

    Every argument is one fault: the file or key, what was found, what was expected, and what to do. Commands print
    them, a line each, without a traceback and exit with status 2. What is no valid Unicode in a message, such as a
    name that is not UTF-8, is escaped, so that every message can be printed and logged.
    """

    def __init__(self, *faults: object):
        super().__init__(*(str(fault).encode(errors="backslashreplace").decode() for fault in faults))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Faults:
    """Collects the faults of checks that do not depend on each other, to report all at once.

    Attributes:
        found: The faults, without repetitions, in order.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, faults: Iterable[str]) -> None:
        """Adds faults."""
        self.found += [fault for fault in dict.fromkeys(faults) if fault not in self.found]

    @contextlib.contextmanager
    def collected(self, prefix: str = "") -> Iterator[None]:
        """Leaves the body at its first `InputError` and adds its faults, each behind the prefix."""
        try:
            yield
        except InputError as error:
            self.add(f"{prefix}{fault}" for fault in error.args)

    def refuse(self) -> None:
        """Raises one `InputError` with all faults, if there are any."""
        if self.found:
            raise InputError(*self.found)


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Part of a message about a misspelled or abbreviated name: " (did you mean train?)", or "" if none is like it."""
    names = list(known)
    initials = (each for each in names if name == "".join(part[:1] for part in each.split("_")))
    found = next(iter(difflib.get_close_matches(name, names, n=1) or initials), "")
    return found and f" (did you mean {found}?)"
