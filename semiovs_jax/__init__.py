"""SemiOVS in JAX: semi-supervised segmentation with open-vocabulary pseudo-labels.

    >>> import semiovs_jax
    >>> model = semiovs_jax.load("runs/demo")
    >>> model.predict("photo.jpg").label.dtype
    dtype('uint8')

`check_data(config)`, `label(config)`, `train(config, workdir)` and `evaluate(run)` are the functions of the modules of
these names, which can be called. `load_config(file, changes)` makes a config. JAX is imported with the first of these
names that needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from data_pipelines.startup import end_on_interrupt

if TYPE_CHECKING:
    from semiovs_jax.check_data import check_data as check_data
    from semiovs_jax.evaluate import evaluate as evaluate
    from semiovs_jax.label import label as label
    from semiovs_jax.prediction.model import load as load
    from semiovs_jax.runtime.config_files import load_config as load_config
    from semiovs_jax.train import train as train

    __version__: str

end_on_interrupt()

_COMMANDS = ("check_data", "evaluate", "label", "train")
_FUNCTIONS = {"load": "prediction.model", "load_config": "runtime.config_files"}

__all__ = ["__version__", *_FUNCTIONS, *_COMMANDS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("semiovs-jax")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"semiovs_jax.{_FUNCTIONS[name]}"), name)
    if name in _COMMANDS:
        return importlib.import_module(f"semiovs_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
