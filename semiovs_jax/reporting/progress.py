"""Progress of a run: speed, time left and losses. A bar on a terminal, lines elsewhere."""

import datetime
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tqdm import tqdm


class Clock:
    """Measures the speed between steps after which the host has waited for the device.

    Compilation ends before the first step returns, and is excluded. The speed also excludes everything before the last
    `restart`, such as an evaluation. The time left includes evaluations.
    """

    def __init__(self, total_steps: int, now: Callable[[], float] = time.monotonic):
        self._total_steps = total_steps
        self._now = now
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] = (0, 0.0)

    def tick(self, step: int) -> None:
        """Must be called after each step. The first call starts the clock."""
        if self._first is None:
            self._first = self._last = (step, self._now())

    def restart(self, step: int) -> None:
        """Starts a new measurement after `step`."""
        self._last = (step, self._now())

    def steps_per_second(self, step: int) -> float | None:
        """Speed since the last call of this or of `restart`; None at the first step."""
        (last_step, last_time), self._last = self._last, (step, self._now())
        seconds = self._last[1] - last_time
        return (step - last_step) / seconds if step > last_step and seconds > 0 else None

    def seconds_left(self, step: int) -> float | None:
        """Expected time to the last step; None before the second step of this process."""
        if self._first is None or step <= self._first[0]:
            return None
        first_step, first_time = self._first
        return (self._now() - first_time) / (step - first_step) * (self._total_steps - step)


class Progress:
    """Shows the progress of a run. All values are on the host already, so it never waits for the device."""

    def __init__(self, total_steps: int, first_step: int, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc="train",
            file=self._stream,
            disable=not self._stream.isatty(),
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def show(
        self,
        step: int,
        values: Mapping[str, float],
        images_per_second: float | None,
        seconds_left: float | None,
        details: str = "",
    ) -> None:
        """Shows `step` and its values; `details` are shown after the speed."""
        parts = [] if seconds_left is None else [f"ETA {datetime.timedelta(seconds=round(seconds_left))}"]
        parts += [] if images_per_second is None else [f"{images_per_second:.1f} images/s"]
        parts += [details] if details else []
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        text = ", ".join(parts)
        if self._bar.disable:
            print(f"step {step}/{self._total_steps}: {text}", file=self._stream, flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()

    def write(self, text: str) -> None:
        """Prints text above the bar."""
        tqdm.write(text, file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Closes the bar; its last state stays visible."""
        self._bar.close()
