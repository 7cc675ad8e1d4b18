"""Checks the settings of a config section against the values that are allowed."""

import sys
from collections.abc import Collection, Mapping
from typing import Any

from data_pipelines.errors import InputError


def at_least(minimum: int) -> range:
    """The integers from `minimum` on, as allowed values for `check_choices`."""
    return range(minimum, sys.maxsize)


def multiples_of(factor: int) -> range:
    """The positive multiples of `factor`, as allowed values for `check_choices`."""
    return range(factor, sys.maxsize, factor)


def check_choices(section: str, values: Mapping[str, Any], tables: Mapping[str, Collection[Any]]) -> None:
    """Checks several settings at once.

    Args:
      section: name of the config section, for example "config.ovs".
      values: the settings by key. Keys that are not in `tables` are not checked.
      tables: the allowed values by key: names, or integers from `at_least` or `multiples_of`.

    Raises:
      InputError: a value is not allowed. One error names every such key, its value and the allowed values.
    """
    faults = [
        f"{section}.{key} is {values[key]!r}; choose {_describe(allowed)}"
        for key, allowed in tables.items()
        if values[key] not in allowed
    ]
    if faults:
        raise InputError(*faults)


def _describe(allowed: Collection[Any]) -> str:
    if not isinstance(allowed, range):
        return "one of " + ", ".join(map(repr, sorted(allowed)))
    return f"a multiple of {allowed.step}" if allowed.step > 1 else f"{allowed.start} or more"
