"""Labelers, one file each: everything that turns weak views into pseudo-labels.

A new labeler is a new file here, `NAME.py`, with `SECTION`, the section of the config that it reads ("ovs",
"method.snapshots"), and `build(section, facts) -> Labeler`. A method names it in its terms. Optional:
`faults(section, dataset, crop_size)`, what is wrong with the section, and `reads_words(section)`, whether its
`vocabulary` is used. The student labels, too, but is no `Labeler` (see `student`).
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.labelers.base import Facts, Labeler, View
from semiovs_jax.methods.table import Method
from semiovs_jax.ovs.base import PseudoLabel

__all__ = ["Facts", "Labeler", "PseudoLabel", "View", "build_labelers", "labeler_faults", "sections_with_words"]


def build_labelers(read_section: Callable[[str], Any], facts: Facts) -> dict[str, Labeler]:
    """The labelers of a method, by name; reads the weights of models that label inside the step.

    Args:
      read_section: the section of the config with this dotted name.
      facts: of the run; `facts.method` decides which labelers there are.

    Raises:
      InputError: as the labelers' own builders.
    """
    return {name: module.build(read_section(module.SECTION), facts) for name, module in _modules(facts.method).items()}


def labeler_faults(
    read_section: Callable[[str], Any], method: Method, dataset: DatasetInfo | None, crop_size: int
) -> list[str]:
    """What is wrong with the options, weights and words of a method's labelers, found without building them.

    Args:
      read_section: the section of the config with this dotted name.
      method: decides which labelers there are.
      dataset: the classes; None if unknown.
      crop_size: side of the training crops, in pixels.
    """
    return [
        fault
        for module in _modules(method).values()
        if hasattr(module, "faults")
        for fault in module.faults(read_section(module.SECTION), dataset, crop_size)
    ]


def sections_with_words(read_section: Callable[[str], Any], method: Method) -> list[str]:
    """The sections of the config whose `vocabulary` the method's labelers read."""
    modules = [module for module in _modules(method).values() if hasattr(module, "reads_words")]
    return [module.SECTION for module in modules if module.reads_words(read_section(module.SECTION))]


def _modules(method: Method) -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"{__name__}.{name}") for name in method.labelers}
