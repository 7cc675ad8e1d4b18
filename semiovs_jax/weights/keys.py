"""Renaming published weights: one table of rules per model, checked in both directions.

Source names are the published state dicts' dotted names; target names are "/" paths into a pure dict of
arrays, such as `backbone/layer1/0/conv1/kernel`. Nothing is matched by luck: every source key is renamed or
dropped by a rule that names it, every target gets exactly one value of its own shape, and all faults are
reported together.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines.errors import InputError

Layout = Literal["same", "conv", "linear", "conv_transpose"]

# Axes of the source, in the order of the target.
_AXES: dict[str, tuple[int, ...]] = {
    "conv": (2, 3, 1, 0),  # OIHW -> HWIO
    "linear": (1, 0),  # OI -> IO
    "conv_transpose": (2, 3, 0, 1),  # IOHW -> HWIO
}


class WeightMismatchError(InputError):
    """Weights that do not fit the model; the message lists every fault."""


@dataclass(frozen=True)
class Rule:
    r"""Where one family of source tensors goes.

    Attributes:
      pattern: Regular expression that has to match the whole source name.
      target: "/" path of the value, with `\1` or `\g<name>` expanded from the match; None drops the tensor.
      layout: How the source's axes become the target's. "conv": OIHW to HWIO. "linear": transposed.
        "conv_transpose": torch's IOHW to HWIO, the kernel unflipped.
    """

    pattern: str
    target: str | None
    layout: Layout = "same"


@dataclass(frozen=True)
class Converted:
    """Renamed weights.

    Attributes:
      values: Arrays by "/" path, in the target's layout.
      dropped: Source names that a rule with target None dropped.
      metadata: What a weight file must say beside its tensors, such as a configuration that shapes do not tell.
    """

    values: dict[str, np.ndarray]
    dropped: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def convert(
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    target: Mapping[str, Any],
    *,
    name: str = "weights",
) -> Converted:
    """Renames `source` to fill `target` exactly.

    Args:
      source: Arrays by published name.
      rules: Tried in order; the first whose pattern matches a name decides.
      target: "/" path to anything with a `shape`, or to the shape itself: all that must be filled.
      name: What `source` is (a file's name), for the error message.

    Returns:
      The values, float16 and bfloat16 widened to float32 and all other types kept, and the dropped names.

    Raises:
      WeightMismatchError: A source name without a rule, a path that is not in `target`, a target without a
        value, a wrong shape or rank, or two sources for one target; all of them in one message.
    """
    values: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    dropped: list[str] = []
    faults: dict[str, list[str]] = {}

    def fault(kind: str, detail: str) -> None:
        faults.setdefault(kind, []).append(detail)

    for key, value in source.items():
        if (found := find_rule(key, rules)) is None:
            fault("source keys that no rule names", f"{key} {tuple(value.shape)}")
            continue
        rule, path = found
        if path is None:
            dropped.append(key)
            continue
        if path not in target:
            fault("source keys for which the model has no place", f"{key} -> {path} {tuple(value.shape)}")
            continue
        if path in origin:
            fault("targets with two sources", f"{path} <- {origin[path]}, {key}")
            continue
        origin[path] = key
        if rule.layout != "same" and value.ndim != len(_AXES[rule.layout]):
            fault("wrong shapes", f"{key} has shape {tuple(value.shape)}, layout {rule.layout} does not apply")
            continue
        array = _widened(np.asarray(value))
        array = array if rule.layout == "same" else array.transpose(_AXES[rule.layout])
        wanted = tuple(getattr(target[path], "shape", target[path]))
        if array.shape != wanted:
            fault("wrong shapes", f"{key} -> {path} has shape {array.shape}, the model wants {wanted}")
            continue
        values[path] = np.ascontiguousarray(array)
    for path in target:
        if path not in origin:
            fault("targets without a source", path)
    if faults:
        raise WeightMismatchError(_message(name, faults))
    return Converted(values, tuple(dropped))


def find_rule(key: str, rules: Sequence[Rule]) -> tuple[Rule, str | None] | None:
    """The first rule that names `key`, with its expanded target; None if no rule does."""
    for rule in rules:
        if match := re.fullmatch(rule.pattern, key):
            return rule, None if rule.target is None else match.expand(rule.target)
    return None


def below(rules: Iterable[Rule], prefix: str, target: str) -> list[Rule]:
    """`rules` for source names behind `prefix` and for paths below `target`."""
    return [
        replace(
            rule,
            pattern=f"{re.escape(prefix)}(?:{rule.pattern})",
            target=None if rule.target is None else f"{target}/{rule.target}",
        )
        for rule in rules
    ]


def target_shapes(source: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, tuple[int, ...]]:
    """Shapes by "/" path that `source` gives, whatever it lacks or has beside them: what a model is inferred from.

    Args:
      source: Anything with a `shape` by published name.
      rules: As in `convert`. Tensors whose rank does not suit their rule's layout are left out.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in source.items():
        rule, path = find_rule(key, rules) or (None, None)
        if rule is None or path is None:
            continue
        axes = _AXES.get(rule.layout, range(len(value.shape)))
        if len(axes) == len(value.shape):
            shapes[path] = tuple(value.shape[axis] for axis in axes)
    return shapes


def _widened(array: np.ndarray) -> np.ndarray:
    narrow = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return array.astype(np.float32) if narrow else array


def _message(name: str, faults: Mapping[str, list[str]]) -> str:
    lines = [f"{name}: the weights do not fit this model"]
    for kind, details in faults.items():
        lines.append(f"  {len(details)} {kind}:")
        lines += [f"    {detail}" for detail in details]
    lines.append("  Use weights of this architecture, or set the model's depth, widths and classes to theirs.")
    return "\n".join(lines)


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by "/" path, the same for a state and for Orbax's record of it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[Any, Any]:
    """The nested dicts of "/" paths: the inverse of `flatten`. All-digit parts become integer keys."""
    tree: dict[Any, Any] = {}
    for path, value in dict(flat).items():
        *parents, leaf = [int(part) if part.isdecimal() else part for part in path.split("/")]
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree
