"""Finds config files, from any folder: as named, or among those that come with this project."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.errors import InputError

_FLAG = "--config"


def config_folder() -> Path:
    """The project's config files: beside this package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_configs(argv: Sequence[str]) -> list[str]:
    """The command line with --config=PATH[:ARGUMENT] replaced by the path of a file.

    A PATH that is no file and begins with "configs/" is looked up in `config_folder`, so that every command works in
    every folder. Inside config files, `from configs import common` means that folder, too.

    Args:
      argv: the command line, as `sys.argv`.

    Raises:
      InputError: there is no such file; the message lists those that come with the project.
    """
    _provide_package(config_folder())
    found = []
    for before, argument in zip(["", *argv], argv, strict=False):
        flag, equals, value = argument.partition("=")
        if flag.replace("--", "-", 1) == _FLAG[1:] and equals:
            argument = f"{flag}={_find(value)}"
        elif before.replace("--", "-", 1) == _FLAG[1:]:
            argument = _find(argument)
        found.append(argument)
    return found


def load_config(value: str) -> ConfigDict:
    """The config of "PATH" or "PATH:ARGUMENT", found as `find_configs` finds it; raises what the file raises."""
    _provide_package(config_folder())
    path, _, argument = _find(value).partition(":")
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[argument] * bool(argument))


def _find(value: str) -> str:
    path, colon, argument = value.partition(":")
    folder = config_folder()
    if not Path(path).is_file():
        first, *rest = Path(path).parts or [""]
        if first != folder.name or not folder.joinpath(*rest).is_file():
            known = ", ".join(f"configs/{file.name}" for file in sorted(folder.glob("*.py")) if file.stem[0] != "_")
            raise InputError(f"{_FLAG}={value}: no such file; name a config file of yours, or one of {known}")
        path = str(folder.joinpath(*rest))
    return f"{path}{colon}{argument}"


def _provide_package(folder: Path) -> None:
    """Imports the folder as the package `configs`: a wheel has no package of so common a name at its top level."""
    if "configs" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "configs", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["configs"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
