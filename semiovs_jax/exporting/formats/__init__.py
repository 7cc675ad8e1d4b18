"""The formats in which a model is exported, one module each: the values of --format.

A format is a module with `write(folder, trained) -> list[Path]`, which writes files and returns their paths, and
`following(folder) -> str`, the command that uses them.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol


class Format(Protocol):
    """A module of this package."""

    def write(self, folder: Path, trained: Any) -> list[Path]:
        """Writes a `TrainedModel`.

        Args:
          folder: created if missing.
          trained: the model.

        Returns:
          The files.

        Raises:
          InputError: a file cannot be written, or the format does not suit this model.
        """
        ...

    def following(self, folder: Path) -> str:
        """The command that comes next, to be copied to a shell."""
        ...


def names() -> list[str]:
    """The names of all formats."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_format(name: str) -> Format:
    """The module of a format; raises ModuleNotFoundError for another name."""
    module: Any = importlib.import_module(f"{__name__}.{name}")
    return module
