"""The range of every number in a config: one table, read at the start of every command.

A rule that needs two keys, or data beside a key, is checked where the data are.
"""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from data_pipelines.errors import InputError


class Range(NamedTuple):
    """The values that a key may have.

    Attributes:
      kind: their type, in words.
      is_kind: whether a value has that type.
      accepts: whether a value of that type is in the range.
      expected: the range, in words.
    """

    kind: str
    is_kind: Callable[[Any], bool]
    accepts: Callable[[Any], bool]
    expected: str


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))


def _are_steps(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) in (0, 2) and all(map(_is_integer, value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(_is_number, value))


def _integer(least: int, most: float = math.inf) -> Range:
    bounds = f"{least} or more" if most == math.inf else f"{least} to {most}"
    return Range("an integer", _is_integer, lambda value: least <= value <= most, bounds)


def _number(accepts: Callable[[float], bool], expected: str) -> Range:
    return Range("a number", _is_number, lambda value: math.isfinite(value) and accepts(value), expected)


_FINITE = _number(lambda value: True, "a finite number")
_NOT_NEGATIVE = _number(lambda value: value >= 0, "a finite number, 0 or more")
_POSITIVE = _number(lambda value: value > 0, "a finite number, more than 0")
_SHARE = _number(lambda value: 0 <= value <= 1, "0 to 1")

_TABLE: Mapping[str, Range] = {
    "seed": _integer(0, 2**32 - 1),  # jax.random.key uses 32 bits of it
    "batch_size": _integer(1),
    "data.ood_min_foreground": _SHARE,
    "data.ood_repeat_threshold": _SHARE,
    "data.crop_size": _integer(1),
    "data.scale_range": Range(
        "two numbers",
        _is_pair,
        lambda value: 0 < value[0] <= value[1] < math.inf,
        "two positive factors, ascending",
    ),
    "data.scale_short_side": _integer(0),
    "data.max_bad_records": _integer(0),
    "data.num_workers": _integer(0),
    "data.num_threads": _integer(0),
    "data.prefetch": _integer(0),
    "data.stall_seconds": _NOT_NEGATIVE,
    "method.ood_weight": _NOT_NEGATIVE,
    "method.confidence_threshold": _SHARE,
    "method.ovs_threshold": _SHARE,
    "method.snapshots.capacity": _integer(1),
    "method.snapshots.draws": _integer(1),
    "method.snapshots.confidence_threshold": _SHARE,
    "method.maskclip.weight": _NOT_NEGATIVE,
    "method.maskclip.confidence_threshold": _SHARE,
    "ovs.image_size": _integer(0),
    "ovs.class_chunk": _integer(0),
    "ovs.top_k": _integer(0),
    "ovs.batch_size": _integer(1),
    "optim.learning_rate": _POSITIVE,
    "optim.backbone_multiplier": _NOT_NEGATIVE,
    "optim.head_multiplier": _NOT_NEGATIVE,
    "optim.momentum": _number(lambda value: 0 <= value < 1, "0 or more, and less than 1"),
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.power": _NOT_NEGATIVE,
    "train.epochs": _integer(0),
    "train.steps": _integer(0),
    "train.log_every_steps": _integer(1),
    "train.eval_every_steps": _integer(0),
    "train.checkpoint_every_steps": _integer(0),
    "train.max_bad_steps": _integer(0),
    "train.panel_images": _integer(0),
    "train.fsdp": _integer(1),
    "train.profile_steps": Range(
        "two integers",
        _are_steps,
        lambda value: not any(value) or 1 <= value[0] <= value[1],
        "the first and the last step to trace, counted from 1, or (0, 0) for none",
    ),
    "eval.batch_size": _integer(1),
    "eval.max_shapes": _integer(1),
    "eval.short_side": _integer(0),
    "eval.window": _integer(0),
    "eval.stride": _integer(1),
    "eval.scales": Range(
        "numbers",
        _are_numbers,
        lambda value: len(value) > 0 and all(0 < scale < math.inf for scale in value),
        "positive factors, such as 0.75,1,1.25",
    ),
}


def range_faults(config: Mapping[str, Any]) -> list[str]:
    """The numbers of a config that are out of their ranges. Keys that the config does not have are not missed.

    A key that the table does not have, such as one of a method of your own, must be finite; if its name ends in
    "threshold", it must be 0 to 1.

    Raises:
      InputError: values of another type than the table's, with which nothing else can be checked; all in one message.
    """
    ranges = {key: (value, found) for key, value in _leaves(config) if (found := _range_of(key, value))}
    wrong = [
        f"config.{key}={value!r}: expected {allowed.kind}; set it to {allowed.expected}"
        for key, (value, allowed) in ranges.items()
        if not allowed.is_kind(value)
    ]
    if wrong:
        raise InputError(*wrong)
    return [
        f"config.{key}={value}: set it to {allowed.expected}"
        for key, (value, allowed) in ranges.items()
        if not allowed.accepts(value)
    ]


def refuse_ranges(config: Mapping[str, Any]) -> None:
    """Raises one `InputError` with all of `range_faults`, if there are any."""
    if faults := range_faults(config):
        raise InputError(*faults)


def _range_of(key: str, value: Any) -> Range | None:
    if key in _TABLE or not _is_number(value):
        return _TABLE.get(key)
    return _SHARE if key.endswith("threshold") else _FINITE


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for key, value in section.items():
        if hasattr(value, "items"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
