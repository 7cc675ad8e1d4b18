"""Open-vocabulary segmentation (OVS) models. From class names as text, they pseudo-label out-of-distribution images.

An OVS is one module of this package with a function `build(config.ovs, num_classes)` that returns a
`semiovs_jax.ovs.base.OVS`. `config.ovs.name` is the name of the module. Importing this package imports no model.
"""

import ast
import importlib
import importlib.util
import logging
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.errors import InputError
from semiovs_jax.ovs.options import check_choices

if TYPE_CHECKING:
    from semiovs_jax.ovs.base import OVS

__all__ = ["build_ovs", "current_name", "ovs_names"]

_RENAMED = {"dense_clip": "maskclip"}  # accepted for one release: DenseCLIP is another paper

_log = logging.getLogger(__name__)


def build_ovs(config: Mapping[str, Any], num_classes: int) -> "OVS":
    """Builds the OVS that `config.ovs` names.

    Args:
      config: `name`, one of `ovs_names()`, and the settings that the `build` function of that module reads.
      num_classes: number of classes of the dataset. The vocabulary must have as many.

    Raises:
      InputError: the name is unknown, or `build` rejects a setting, the weights or the vocabulary.
    """
    name = current_name("config.ovs.name", config["name"])
    check_choices("config.ovs", {"name": name}, {"name": ovs_names()})
    build: Callable[[Mapping[str, Any], int], OVS] = importlib.import_module(f"{__name__}.{name}").build
    return build(config, num_classes)


def model_faults(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the name and the settings of the model that `config.ovs` names; reads no whole weight file.

    Args:
      config: as of `build_ovs`. A module may bring `faults(config)` for its own settings.
    """
    name = _RENAMED.get(config["name"], config["name"])
    try:
        check_choices("config.ovs", {"name": name}, {"name": ovs_names()})
    except InputError as error:
        return list(map(str, error.args))
    module = importlib.import_module(f"{__name__}.{name}")
    return module.faults(config) if hasattr(module, "faults") else []


def model_fingerprint(config: Mapping[str, Any]) -> str:
    """The `OVS.fingerprint` of the model that `config.ovs` names; reads no whole weight file.

    Args:
      config: as of `build_ovs`.

    Returns:
      "" if the module does not bring `fingerprint(config)`.

    Raises:
      InputError: the name is unknown, or the weights or the vocabulary cannot be read.
    """
    name = _RENAMED.get(config["name"], config["name"])
    check_choices("config.ovs", {"name": name}, {"name": ovs_names()})
    module = importlib.import_module(f"{__name__}.{name}")
    return module.fingerprint(config) if hasattr(module, "fingerprint") else ""


def ovs_names() -> list[str]:
    """Names of all OVS models: the modules of this package that define a function `build`. Imports none of them."""
    modules = [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg]
    return sorted(name for name in modules if _defines_build(name))


def current_name(key: str, name: str) -> str:
    """Returns the current name of an OVS. Logs a warning if `name` is deprecated.

    Args:
      key: the config key that holds the name, for the warning.
      name: a current or a deprecated name.
    """
    if name not in _RENAMED:
        return name
    _log.warning("%s=%s is deprecated; the next release rejects it. Write %s=%s", key, name, key, _RENAMED[name])
    return _RENAMED[name]


def _defines_build(name: str) -> bool:
    spec = importlib.util.find_spec(f"{__name__}.{name}")  # finds the file without running it
    assert spec is not None
    assert spec.origin is not None
    statements = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    return any(isinstance(statement, ast.FunctionDef) and statement.name == "build" for statement in statements)
