"""How commands end: their last message and their exit status."""

import contextlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_pipelines.errors import InputError
from data_pipelines.signals import Stopped, end_process, leave_at_once, stop_on_signals

NOTHING_WRITTEN = "it has written nothing; the same command starts again"


class End(NamedTuple):
    """How a command ends.

    Attributes:
        message: What is printed; "" for nothing.
        status: The exit status.
    """

    message: str
    status: int


@contextlib.contextmanager
def command_end(kept: str = NOTHING_WRITTEN) -> Iterator[list[Callable[[signal.Signals], None]]]:
    """Ends a command with a message in place of a traceback: status 2 for `InputError`, 130 and 143 for signals.

    SIGINT and SIGTERM raise `Stopped` in the body; a second signal ends the process at once (see `signals`). For a
    closed stdout see `closed_output_ends`.

    Args:
        kept: What a stopped command leaves behind, and which command continues.

    Yields:
        A list of functions to call with the signal before the process ends at once; empty at first.
    """
    before_leaving: list[Callable[[signal.Signals], None]] = []

    def leave(number: signal.Signals) -> None:
        print_end(end_of(Stopped(number), kept))
        for call in before_leaving:
            call(number)
        leave_at_once(number)

    try:
        with closed_output_ends(), stop_on_signals(leave):
            yield before_leaving
        return
    except (InputError, Stopped) as error:
        print_end(end_of(error, kept))
        number = error.signal if isinstance(error, Stopped) else None
    # Outside of the handler: the error would keep all variables of the command, such as shared memory.
    if number is None:
        sys.exit(2)
    end_process(number)


@contextlib.contextmanager
def closed_output_ends() -> Iterator[None]:
    """Ends the process without a message where nothing reads stdout any more, as in `... | head`; the status is 141."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not _stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end
        if isinstance(error, SystemExit) and error.code:
            raise
        sys.exit(128 + signal.SIGPIPE)


def _stdout_is_closed() -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # a stream without a file
        return False
    return any(events & select.POLLERR for _, events in poll.poll(0))


def end_of(error: BaseException, kept: str) -> End:
    """The end of a command that raises `error`; for other errors than faults of the input, with their traceback."""
    if isinstance(error, Stopped):
        return End(f"stopped by {error.signal.name}{error.where and ' '}{error.where}; {kept}", 128 + error.signal)
    if isinstance(error, InputError):
        return End(f"error: {error}", 2)
    if isinstance(error, SystemExit):
        return End("", error.code if isinstance(error.code, int) else int(error.code is not None))
    return End("".join(traceback.format_exception(error)).rstrip(), 1)


def print_end(end: End) -> None:
    """Prints the message of an end to stderr."""
    if end.message:
        print(end.message, file=sys.stderr, flush=True)
