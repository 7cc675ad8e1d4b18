"""Errors of the storage below Orbax: which of them the operating system refused, and what is printed of them."""

import asyncio.base_events
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import logging as absl_logging

_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")  # in the messages of TensorStore


def refusal(error: BaseException | None) -> str | None:
    """What the operating system refused, such as "No space left on device"; None for another error."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if found := _OS_ERROR.search(str(error)):
            return os.strerror(int(found[1]))
        error = error.__cause__
    return None


def hide_repetitions() -> None:
    """Hides the tracebacks that Orbax's threads print of an error that Orbax raises, too.

    Orbax and its event loops log them. TensorStore's threads report each array that ends after the error to an event
    loop that Orbax has closed by then; Python prints what they raise.
    """
    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _UnraisableHook):
        sys.unraisablehook = _UnraisableHook(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and ("orbax" in record.pathname or refusal(record.exc_info[1])))


class _UnraisableHook:
    """Hides that an event loop is closed; all else goes to the hook before."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        frames = traceback.extract_tb(unraisable.exc_traceback)
        in_event_loop = bool(frames) and frames[-1].filename == asyncio.base_events.__file__
        if not (in_event_loop and frames[-1].name == "_check_closed"):
            self._before(unraisable)
