"""What `python -m` does before the first line of a command: it imports the packages around it."""

import signal
import sys


def end_on_interrupt() -> None:
    """Lets Ctrl-C end a command of `python -m` without a traceback, until the command handles signals, and after.

    While Python imports the packages around a command, `sys.argv[0]` is "-m". At any other time this has no effect, nor
    where SIGINT is ignored, as in the background of a shell.
    """
    if sys.argv[:1] == ["-m"]:
        default_interrupt()


def default_interrupt() -> None:
    """Lets Ctrl-C end this process without a traceback, unless something else handles or ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
