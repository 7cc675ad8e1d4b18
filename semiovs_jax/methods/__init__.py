"""Methods, one file each: a method is a table of consistency terms.

A new method is a new file here, `NAME.py`, with `make(config.method) -> Method`. Optional: `OOD`, the values of
`config.method.ood` that it has, and `faults(config.method)`, what is wrong with its own keys.
"""

import importlib
import pkgutil
from typing import Any

import ml_collections

from data_pipelines.errors import InputError
from semiovs_jax.methods.table import STUDENT, Method, Progress, Term

__all__ = ["OOD", "STUDENT", "Method", "Progress", "Term", "make_method", "make_unchecked", "method_faults", "names"]

OOD = ("none", "unlabeled", "ovs")


def names() -> list[str]:
    """The names of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "table")


def make_method(config: ml_collections.ConfigDict) -> Method:
    """The method that `config.method` describes.

    Args:
      config: `config.method` with the keys name (of `names`), ood (of `OOD`), and those that the method's `make`
        reads. With ood "unlabeled" the OOD images join the unlabeled stream, and the table is that of "none".

    Raises:
      InputError: all of `method_faults`, in one message.
    """
    if faults := method_faults(config):
        raise InputError(*faults)
    return _module(config.name).make(config)


def make_unchecked(config: ml_collections.ConfigDict) -> Method | None:
    """The method of a `config.method` with values that may be out of range, for further checks; None without one."""
    return _module(config.name).make(config) if config.name in names() else None


def method_faults(config: ml_collections.ConfigDict) -> list[str]:
    """Everything wrong with the names in `config.method`: of the method, of its use of OOD images, of its own keys."""
    if config.name not in names():
        return [f"config.method.name={config.name!r}: no such method; choose one of {', '.join(names())}"]
    module = _module(config.name)
    faults = module.faults(config) if hasattr(module, "faults") else []
    if config.ood not in (choices := getattr(module, "OOD", OOD)):
        faults.append(
            f"config.method.ood={config.ood!r}: {config.name} has no such way to use OOD images; choose one of "
            f"{', '.join(choices)}"
        )
    return faults


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
