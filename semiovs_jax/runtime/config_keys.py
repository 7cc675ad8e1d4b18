"""The keys of a config: what they mean, read from the source of a config file, and flags that name none of them."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.errors import InputError, did_you_mean

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


class Key(NamedTuple):
    """A line `config.KEY = VALUE  # comment` of a config file.

    Attributes:
      value: the value if it is a literal, else None.
      is_section: whether the value is a ConfigDict.
      comment: the comment at the end of the line, or "".
    """

    value: Any
    is_section: bool
    comment: str


def read_keys(path: Path) -> dict[str, Key]:
    """The keys that a config file sets, in its order; of keys that are set twice, the first line.

    Args:
      path: the file. It is not run.
    """
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, Key] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and (target := ast.unparse(node.targets[0])).startswith("config."):
            comment = comments.get(node.end_lineno or 0, "")
            for name, key in _keys_of(target.removeprefix("config."), node.value, comment):
                found.setdefault(name, key)
    return found


def _keys_of(name: str, value: ast.expr, comment: str) -> Iterator[tuple[str, Key]]:
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("ConfigDict"):
        yield name, Key(None, True, comment)
        for argument in value.args:
            yield from ((f"{name}.{key}", Key(item, False, "")) for key, item in flat(ast.literal_eval(argument)))
        return
    try:
        yield name, Key(ast.literal_eval(value), False, comment)
    except ValueError:
        yield name, Key(None, False, comment)


def flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a config with their keys, "optim.learning_rate", in the config's order."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from ((f"{name}.{key}", item) for key, item in flat(value))
        else:
            yield name, value


def change_values(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Sets values of a config in place, as flags --config.KEY=VALUE do.

    Args:
      config: the config; it may be locked.
      changes: values by dotted key, such as {"eval.window": 512}.

    Raises:
      InputError: keys that the config does not have, or values of another type than the config's; all in one error.
    """
    faults = []
    for key, value in changes.items():
        if fault := _fault(key, config):
            faults.append(f"changes: {fault}")
            continue
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError, ValueError):
            kind = type(dict(flat(config)).get(key, config)).__name__
            faults.append(f"changes: config.{key}={value!r}: expected a value of type {kind}")
    if faults:
        raise InputError(*faults)


def unknown_keys(argv: Sequence[str], config: ConfigDict) -> list[str]:
    """A message for each flag --config.KEY whose key the config does not have.

    Args:
      argv: the command line.
      config: the config that it names.
    """
    given = (match[1] for argument in argv if (match := _OVERRIDE.match(argument)))
    return [f"--{fault}" for key in dict.fromkeys(given) if (fault := _fault(key, config))]


def _fault(key: str, config: ConfigDict) -> str:
    section, path = config, "config"
    for name in (part.partition("[")[0] for part in key.split(".")):
        if not isinstance(section, ConfigDict):
            return f"config.{key}: {path} is a value, {section!r}, and has no keys; set {path} itself"
        if name not in section:
            elsewhere = [f"config.{other}" for other, _ in flat(config) if other.rpartition(".")[2] == name]
            suggested = f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else did_you_mean(name, section)
            return f"config.{key}: no such key{suggested}; {path} has {', '.join(sorted(section))}"
        section, path = section[name], f"{path}.{name}"
    return ""
