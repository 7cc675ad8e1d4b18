"""What `--help` of a command with --config prints, and the message for flags that are missing or unknown."""

import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.errors import InputError, did_you_mean
from semiovs_jax.runtime.config_files import config_folder, config_value, find_configs, load_config
from semiovs_jax.runtime.config_keys import Key, flat, read_keys
from semiovs_jax.runtime.program import program

_HELP = ("-h", "-?", "-help", "--help", "-helpshort", "--helpshort")
_REQUIRED = "must have a value other than None"  # of absl's `mark_flag_as_required`
_WIDTH, _FLAG_WIDTH, _KEY_WIDTH = 120, 24, 44


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line has the flag --help."""
    return any(argument in _HELP for argument in _flags_of(argv))


def format_help(argv: Sequence[str], run_config: str, keys: str) -> str:
    """The help of the command that runs: its description, its flags, and every key of its config.

    Args:
      argv: the command line; the values are those of its config.
      run_config: see `find_configs`.
      keys: the project's config file that describes the keys, such as "common.py"; its values are shown where the
        command line names no config, or one that cannot be loaded.
    """
    described, values, origin = keys_of(argv, run_config, keys)
    return "\n".join(
        (
            description(),
            "",
            "flags:",
            *(_flag_line(flag) for flag in own_flags()),
            "",
            f"keys of the config, each a flag, with the values of {origin}:",
            *_key_lines(described, values),
        )
    )


def keys_of(argv: Sequence[str], run_config: str, keys: str) -> tuple[dict[str, Key], dict[str, Any], str]:
    """The keys of the config of a command line, their values, and where these are from; for the arguments see above."""
    described = read_keys(config_folder() / keys)
    values, origin = {name: key.value for name, key in described.items() if not key.is_section}, f"configs/{keys}"
    try:
        if value := config_value(find_configs(argv, run_config)):
            values, own_keys = dict(flat(load_config(value))), read_keys(Path(value.partition(":")[0]))
            origin = config_value(argv) or f"the run in {value.partition(':')[2]}"
            described |= {name: key for name, key in own_keys.items() if name not in described}
    except Exception as error:  # a config file may raise anything
        origin = f"{origin}, as the config cannot be loaded ({error})"
    described = {name: key for name, key in described.items() if _exists(name, values)}
    return described | {name: Key(None, False, "") for name in values if name not in described}, values, origin


def description() -> str:
    """The docstring of the command that runs, with the command line that started it; "" if it has none."""
    module, text = _module_name(), sys.modules["__main__"].__doc__ or ""
    return text.replace(f"python -m {module}", program(module)).strip()


def own_flags() -> list[flags.Flag]:
    """The flags of the command that runs, without those of libraries and of config keys."""
    by_module = flags.FLAGS.flags_by_module_dict()
    found = [flags.FLAGS["config"], *by_module.get(sys.argv[0], ()), *by_module.get("semiovs_jax.runtime.command", ())]
    found = [flag for flag in dict.fromkeys(found) if not flag.name.startswith("config.")]
    return sorted(found, key=lambda flag: (not _is_required(flag), flag.name != "config"))


def choices_of(flag: flags.Flag) -> tuple[str, ...]:
    """The values that a flag may have; () if it is no enum."""
    return tuple(getattr(flag.parser, "enum_values", None) or ())


def meaning_of(flag: flags.Flag) -> str:
    """The help of a flag, without the choices that absl puts before that of an enum."""
    return flag.help.removeprefix(f"<{'|'.join(choices_of(flag))}>: ")


def refuse_flags(argv: Sequence[str]) -> None:
    """Refuses a command line that lacks required flags or has unknown ones. The flags must be parsed.

    Args:
      argv: the command line.

    Raises:
      InputError: all of them, with an example.
    """
    faults = []
    own = own_flags()
    if missing := [f"--{flag.name}" for flag in own if _is_required(flag) and flag.value is None]:
        faults.append(f"{', '.join(missing)}: missing{_example()}")
    names = [f"--{flag.name}" for flag in own]
    for argument in _flags_of(argv):
        name = argument.lstrip("-").partition("=")[0]
        if name not in flags.FLAGS and name.removeprefix("no") not in flags.FLAGS and not name.startswith("config."):
            suggested, there_are = did_you_mean(f"--{name}", names), ", ".join((*names, "--config.KEY"))
            faults.append(f"--{name}: no such flag{suggested}; there are {there_are}")
    if faults:
        raise InputError(*faults)


def _flags_of(argv: Sequence[str]) -> list[str]:
    arguments = list(argv[1:])
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [argument for argument in arguments[:end] if argument.startswith("-") and argument.strip("-")]


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def _example() -> str:
    """The first command line in the description, as part of a message; "" if there is none."""
    start = program(_module_name())
    _, found, rest = description().partition(f"{start} ")
    return f"; for example: {start} {rest.splitlines()[0].rstrip('.`')}" if found else ""


def _is_required(flag: flags.Flag) -> bool:
    return any(_REQUIRED in validator.message for validator in flag.validators)


def _flag_line(flag: flags.Flag) -> str:
    value = "|".join(choices_of(flag) or ("FILE[:ARGUMENT]" if flag.name == "config" else "VALUE",))
    text = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={value}"
    notes = "Required. " if _is_required(flag) else ""
    default = f" Default: {str(flag.default_as_str).strip(chr(39))}." if flag.default not in (None, "", False) else ""
    lines = textwrap.wrap(f"{notes}{meaning_of(flag)}{default}", _WIDTH - _FLAG_WIDTH - 4)
    first, *others = lines if len(text) <= _FLAG_WIDTH else ["", *lines]
    indent = " " * (_FLAG_WIDTH + 4)
    return "\n".join((f"  {text:{_FLAG_WIDTH}}  {first}".rstrip(), *(indent + line for line in others)))


def _exists(name: str, values: Mapping[str, Any]) -> bool:
    return name in values or any(key.startswith(f"{name}.") for key in values)


def _key_lines(described: Mapping[str, Key], values: Mapping[str, Any]) -> Iterator[str]:
    for name, key in described.items():
        if key.is_section:
            if key.comment:
                yield f"  # config.{name}: {key.comment}"
        else:
            text = f"--config.{name}={shlex.quote(_as_text(values.get(name)))}"
            yield f"  {text:{_KEY_WIDTH}}  # {key.comment}" if key.comment else f"  {text}"


def _as_text(value: Any) -> str:
    return str(value.to_dict() if isinstance(value, ConfigDict) else value)
