"""Finds config files from any working folder: at their path, or among those of this project."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.runtime.config_keys import change_values

_FLAG, _WORKDIR = "--config", "--workdir"


def config_folder() -> Path:
    """The folder of the project's config files: beside this package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_configs(argv: Sequence[str], run_config: str = "", default_config: str = "") -> list[str]:
    """The command line with --config=PATH[:ARGUMENT] replaced by the path of a file.

    A PATH that starts with "configs/" and is not a file is looked up in `config_folder`, so that commands work in every
    folder. `from configs import common` in a config file imports from that folder, too.

    Args:
      argv: the command line, as `sys.argv`.
      run_config: a config file whose argument is a workdir, for a command line with --workdir and without --config; ""
        for none.
      default_config: a config file for a command line without --config; "" for none.

    Raises:
      InputError: the file is missing; the message lists the project's config files.
    """
    _provide_package(config_folder())
    if default_config and not _values(_FLAG, argv):
        argv = [*argv[:1], f"{_FLAG}={default_config}", *argv[1:]]
    found, configs, workdir = list(argv), _values(_FLAG, argv), _values(_WORKDIR, argv)
    for index, value in configs.items():
        found[index] = found[index].removesuffix(value) + _find(value)
    if run_config and workdir and not configs:
        found.insert(1, f"{_FLAG}={run_config}:{list(workdir.values())[-1]}")
    return found


def has_flag(flag: str, argv: Sequence[str]) -> bool:
    """Whether a command line has a value for a flag, such as "--config"."""
    return bool(_values(flag, argv))


def _values(flag: str, argv: Sequence[str]) -> dict[int, str]:
    """The values of a flag by the index of their argument: of --flag=VALUE itself, or of the one after --flag."""
    values = {}
    for index, (before, argument) in enumerate(zip(["", *argv], argv, strict=False)):
        name, equals, value = argument.partition("=")
        if name.replace("--", "-", 1) == flag[1:] and equals:
            values[index] = value
        elif before.replace("--", "-", 1) == flag[1:]:
            values[index] = argument
    return values


def config_value(argv: Sequence[str]) -> str:
    """The value of --config in a command line, the last one; "" if it has none."""
    return ["", *_values(_FLAG, argv).values()][-1]


def load_config(value: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Loads a config file, with values changed as by flags --config.KEY=VALUE.

        >>> import semiovs_jax
        >>> config = semiovs_jax.load_config("configs/demo.py", {"train.steps": 100})
        >>> config.train.steps
        100

    Args:
      value: "PATH" or "PATH:ARGUMENT", found as in `find_configs`.
      changes: values by dotted key, such as {"data.root": "photos"}.

    Raises:
      InputError: the file is missing, or as `change_values`.
      Exception: any other, raised by the file.
    """
    path, _, argument = _find(value).partition(":")
    config = _load_module(path).get_config(*[argument] * bool(argument))
    change_values(config, changes or {})
    return config


def published_rows() -> list[str]:
    """Values of --config for the published experiments: each method of each file at the file's first split.

    A file of published rows names its `SPLITS` and `METHODS`. Rows of other splits have the same train step.
    """
    modules = {file.name: _load_module(str(file)) for file in sorted(config_folder().glob("*.py"))}
    return [
        f"configs/{name}:{module.SPLITS[0]},{method}"
        for name, module in modules.items()
        if hasattr(module, "SPLITS")
        for method in module.METHODS
    ]


def _load_module(path: str) -> Any:
    """A config file as a module; raises whatever the file raises."""
    _provide_package(config_folder())
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _find(value: str) -> str:
    path, colon, argument = value.partition(":")
    folder = config_folder()
    if not Path(path).is_file():
        first, *rest = Path(path).parts or [""]
        if first != folder.name or not folder.joinpath(*rest).is_file():
            known = ", ".join(f"configs/{file.name}" for file in sorted(folder.glob("*.py")) if file.stem[0] != "_")
            raise InputError(f"{_FLAG}={value}: no such file; pass a config file of your own, or one of {known}")
        path = str(folder.joinpath(*rest))
    return f"{path}{colon}{argument}"


def _provide_package(folder: Path) -> None:
    """Imports the folder as the package `configs`, a name too common for a wheel's top level."""
    if "configs" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "configs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["configs"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
