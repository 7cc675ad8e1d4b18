"""Labelers, one file each: everything that turns weak views into pseudo-labels.

A new labeler is a new file here, `NAME.py`, with `SECTION`, the section of the config that it reads ("ovs",
"method.snapshots"), and `build(section, facts) -> Labeler`. A method names it in its terms. The student labels, too,
but is no `Labeler` (see `student`).
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from semiovs_jax.labelers.base import Facts, Labeler, View
from semiovs_jax.ovs.base import PseudoLabel

__all__ = ["Facts", "Labeler", "PseudoLabel", "View", "build_labelers"]


def build_labelers(read_section: Callable[[str], Any], facts: Facts) -> dict[str, Labeler]:
    """The labelers of a method, by name; reads the weights of models that label inside the step.

    Args:
      read_section: the section of the config with this dotted name.
      facts: of the run; `facts.method` decides which labelers there are.

    Raises:
      InputError: as the labelers' own builders.
    """
    modules: dict[str, ModuleType] = {
        name: importlib.import_module(f"{__name__}.{name}") for name in facts.method.labelers
    }
    return {name: module.build(read_section(module.SECTION), facts) for name, module in modules.items()}
