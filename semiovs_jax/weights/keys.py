"""Renames published weights: one table of rules per model, checked in both directions.

Source keys are the dotted names of published state dicts. Targets are "/" paths into a pure dict of arrays, such as
`backbone/layer1/0/conv1/kernel`. A rule renames or drops each source key. Each target gets exactly one value, of its
own shape. One error reports all faults.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
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
    """Weights do not fit the model; the message lists every fault."""


@dataclass(frozen=True)
class Rule:
    r"""The target of one family of source tensors.

    Attributes:
      pattern: Regular expression that must match the whole source key.
      target: "/" path of the value, with `\1` or `\g<name>` expanded from the match. None drops the tensor.
      layout: The permutation of axes. "conv": OIHW to HWIO. "linear": OI to IO. "conv_transpose": torch's IOHW to
        HWIO; the kernel is not flipped.
    """

    pattern: str
    target: str | None
    layout: Layout = "same"


@dataclass(frozen=True)
class Converted:
    """Renamed weights.

    Attributes:
      values: Arrays by "/" path, in the target's layout.
      dropped: Source keys that a rule with target None dropped.
      metadata: Entries for the metadata of the weight file, such as the architecture as JSON.
    """

    values: dict[str, np.ndarray]
    dropped: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


# The converter of one `--kind`: from a state dict and the path of its file, for error messages.
Converter = Callable[[Mapping[str, np.ndarray], str], Converted]


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
      rules: Tried in order; the first rule that matches a key applies.
      target: All shapes to fill, or anything with a `shape`, by "/" path.
      name: The file that `source` comes from, for the error message.

    Returns:
      The values and the dropped keys. float16 and bfloat16 become float32; other types stay.

    Raises:
      WeightMismatchError: A source key without a rule, a path that is not in `target`, a target without a value, a
        wrong shape or rank, or two sources for one target. The message lists all of them.
    """
    values: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    dropped: list[str] = []
    faults: dict[str, list[str]] = {}

    def fault(kind: str, detail: str) -> None:
        faults.setdefault(kind, []).append(detail)

    for key, value in source.items():
        if (found := find_rule(key, rules)) is None:
            fault("source keys that no rule matches", f"{key} {tuple(value.shape)}")
            continue
        rule, path = found
        if path is None:
            dropped.append(key)
            continue
        if path not in target:
            fault("source keys that are not in the model", f"{key} -> {path} {tuple(value.shape)}")
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
            fault("wrong shapes", f"{key} -> {path} has shape {array.shape}, expected {wanted}")
            continue
        values[path] = np.ascontiguousarray(array)
    for path in target:
        if path not in origin:
            fault("targets without a source", path)
    if faults:
        raise WeightMismatchError(_message(name, faults))
    return Converted(values, tuple(dropped))


def published_names(values: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    r"""The source that `convert` renames to `values`: its inverse, by the same table.

    Args:
      values: Arrays by "/" path.
      rules: Literal names and capturing groups, such as `layer1\.(\d+)\.conv1`, but no other syntax of patterns. The
        first rule whose target fits a path applies. Rules that drop tensors are left out.

    Returns:
      Arrays by published name, in the published layout.

    Raises:
      ValueError: No rule has a path as its target, a pattern has other syntax, or two paths have one name.
    """
    inverse = [_invert(rule) for rule in rules if rule.target is not None]
    source: dict[str, np.ndarray] = {}
    for path, value in values.items():
        rule, key = find_rule(path, inverse) or (None, None)
        if rule is None or key is None:
            raise ValueError(f"no rule has the target {path}")
        if key in source:
            raise ValueError(f"two tensors are named {key}, one of them {path}")
        axes = _AXES.get(rule.layout)
        array = np.asarray(value)
        source[key] = np.ascontiguousarray(array if axes is None else array.transpose(np.argsort(axes)))
    return source


_GROUP = re.compile(r"\(([^()?][^()]*)\)")


def _invert(rule: Rule) -> Rule:
    """A rule from paths to names. Its layout is that of `rule`: the permutation to undo."""
    assert rule.target is not None
    groups, numbers = _GROUP.findall(rule.pattern), itertools.count(1)
    if not re.fullmatch(r"\w*", _GROUP.sub("", rule.pattern).replace(r"\.", "")):
        raise ValueError(f"the pattern {rule.pattern} has no inverse: it is not made of names and groups alone")
    name = _GROUP.sub(lambda _: rf"\g<g{next(numbers)}>", rule.pattern).replace(r"\.", ".")
    path = re.sub(r"\\(\d)", lambda match: f"(?P<g{match[1]}>{groups[int(match[1]) - 1]})", rule.target)
    return Rule(path, name, rule.layout)


def match_exactly(values: Mapping[str, Any], target: Mapping[str, Any], *, name: str) -> dict[str, np.ndarray]:
    """`convert` for values that already have the paths of `target`; returns them widened."""
    return convert(values, [Rule(r"(.*)", r"\1")], target, name=name).values


def find_rule(key: str, rules: Sequence[Rule]) -> tuple[Rule, str | None] | None:
    """The first rule that matches `key`, with its expanded target; None if no rule matches."""
    for rule in rules:
        if match := re.fullmatch(rule.pattern, key):
            return rule, None if rule.target is None else match.expand(rule.target)
    return None


def below(rules: Iterable[Rule], prefix: str, target: str) -> list[Rule]:
    """`rules` for source keys that start with `prefix` and for paths below `target`."""
    return [
        replace(
            rule,
            pattern=f"{re.escape(prefix)}(?:{rule.pattern})",
            target=None if rule.target is None else f"{target}/{rule.target}",
        )
        for rule in rules
    ]


def prefixes(source: Mapping[str, Any], pattern: str) -> list[str]:
    """What precedes `pattern` in each key that ends with it: "" or a prefix that ends with a dot."""
    return [match[1] for key in source if (match := re.fullmatch(rf"(.*\.|)(?:{pattern})", key))]


def strip_prefix(source: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose keys start with `prefix`, by key without it."""
    return {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}


def target_shapes(source: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, tuple[int, ...]]:
    """Shapes by "/" path of the tensors that the rules match: the facts from which an architecture is inferred.

    Args:
      source: Anything with a `shape` by published name.
      rules: As in `convert`. Tensors of a wrong rank are left out.
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
    """Leaves of a pytree by "/" path: the same paths for a state and for the metadata that Orbax saves of it."""
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


def fill(tree: Any, values: Mapping[str, Any]) -> dict[Any, Any]:
    """`tree` with each leaf replaced by the value of its "/" path, in the leaf's dtype; other values are not used."""
    return unflatten({path: jnp.asarray(values[path], leaf.dtype) for path, leaf in flatten(tree).items()})
