"""Writers, one file each: where a run's metrics, panels and summary go beside metrics.jsonl.

A new writer is a new file here, `NAME.py`, with `open_writer(facts) -> Writer`; it is imported if
`config.train.writers` names it. Optional: `faults()`, what it needs that is missing, found before anything is labeled
or compiled. A writer keeps its files in WORKDIR/NAME. Settings of a service are the environment variables of its
package.
"""

import contextlib
import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

from data_pipelines.errors import did_you_mean
from semiovs_jax.writers.base import RunFacts, Writer, WriterError

__all__ = ["RunFacts", "Writer", "WriterError", "Writers", "names", "writer_faults"]

_logger = logging.getLogger(__name__)


def names() -> list[str]:
    """The names of all writers."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def writer_faults(chosen: str) -> list[str]:
    """What is wrong with `config.train.writers`: unknown names, and what its writers need that is missing.

    Args:
      chosen: names of `names`, separated by commas; "" for none.
    """
    known = names()
    faults = [
        f"config.train.writers={chosen!r}: no writer {name!r}{did_you_mean(name, known)}; choose of {', '.join(known)}"
        for name in _split(chosen)
        if name not in known
    ]
    modules = [_module(name) for name in _split(chosen) if name in known]
    return faults + [fault for module in modules if hasattr(module, "faults") for fault in module.faults()]


class Writers:
    """All writers of a run as one. A writer that raises a `WriterError` is left out from then on, with a warning.

    Attributes:
      open: the writers in use, by name.
    """

    def __init__(self, chosen: str, facts: RunFacts):
        """Opens the writers that `config.train.writers` names."""
        self.open: dict[str, Writer] = {}
        for name in _split(chosen):
            self._guard(name, functools.partial(self._open, name, facts))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Writer.add_scalars`."""
        self._each(lambda writer: writer.add_scalars(values, step))

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """See `Writer.add_image`."""
        self._each(lambda writer: writer.add_image(tag, image, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """See `Writer.add_text`."""
        self._each(lambda writer: writer.add_text(tag, text, step))

    def finish(self, values: Mapping[str, float]) -> None:
        """See `Writer.finish`."""
        self._each(lambda writer: writer.finish(values))

    def close(self, finished: bool) -> None:
        """See `Writer.close`. All are closed, even if one fails; does nothing the second time."""
        with contextlib.ExitStack() as closing:
            for name, writer in self.open.items():
                closing.callback(self._guard, name, functools.partial(writer.close, finished))
            self.open = {}

    def _open(self, name: str, facts: RunFacts) -> None:
        self.open[name] = _module(name).open_writer(facts)

    def _each(self, call: Callable[[Writer], None]) -> None:
        for name, writer in list(self.open.items()):
            self._guard(name, functools.partial(call, writer))

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except WriterError as error:
            self.open.pop(name, None)
            _logger.warning(
                "%s: cannot be written (%s); this start goes on without it. All values are in metrics.jsonl; the next "
                "start of the run writes there again",
                name,
                error,
            )


def _split(chosen: str) -> list[str]:
    return [name for name in dict.fromkeys(part.strip() for part in chosen.split(",")) if name]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
