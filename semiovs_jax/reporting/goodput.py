"""How the wall time of a start is spent. Goodput is the share of its training steps."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax

Phase = Literal["steps", "input", "evaluation", "checkpoint", "labeling", "compile", "other"]
_OTHER: Phase = "other"


class Goodput:
    """Divides the time since it was made among phases. It never waits for a device.

    Steps are dispatched asynchronously. The time of "steps" is that of dispatching them, and of waiting for their
    results where the loop waits anyway. Time outside of all phases is "other": checks, weights, reports. What a phase
    compiles is part of it: the first evaluation takes longer.

    Example:
      goodput = Goodput()
      with goodput.phase("compile"):
          step = compile_step(...)
      with goodput.input(metrics):
          batch = next(batches)
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        """Starts the clock.

        Args:
          now: a clock, in seconds.
        """
        self._now = now
        self._since = now()
        self._phases: list[Phase] = [_OTHER]
        self._seconds: dict[Phase, float] = {}
        self._told: dict[Phase, float] = {}

    @contextlib.contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """The time of the block belongs to `name`. A phase inside another one pauses the outer one."""
        self._charge(self._phases[-1])
        self._phases.append(name)
        try:
            yield
        finally:
            self._charge(self._phases.pop())

    @contextlib.contextmanager
    def input(self, last: Mapping[str, jax.Array]) -> Iterator[None]:
        """The block waits for a batch.

        Its time is "input" if the devices have no work left at its end, else "steps": they computed all the while. Work
        that ended in the meantime counts as "input", so "input" is an upper bound of the time that the devices waited.

        Args:
          last: results of the last step that was dispatched; empty before the first.
        """
        self._charge(self._phases[-1])
        try:
            yield
        finally:
            self._charge("input" if all(map(_is_ready, last.values())) else "steps")

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, the longest first."""
        self._charge(self._phases[-1])
        return dict(sorted(self._seconds.items(), key=lambda item: -item[1]))

    def seconds_since_last(self) -> dict[str, float]:
        """Seconds by phase since the last call of this."""
        now = self.seconds()
        told, self._told = self._told, dict(self._seconds)
        return {phase: seconds - told.get(phase, 0.0) for phase, seconds in now.items()}  # type: ignore[call-overload]

    def _charge(self, phase: Phase) -> None:
        now = self._now()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now


def format_shares(seconds: Mapping[str, float]) -> str:
    """Time by phase in one line, in percent."""
    total = sum(seconds.values())
    shares = ", ".join(f"{phase} {100 * value / total:.1f} %" for phase, value in seconds.items() if value > 0)
    return f"{total:,.1f} s: {shares}"


def _is_ready(value: Any) -> bool:
    return value.is_ready()
