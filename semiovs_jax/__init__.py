"""SemiOVS in JAX: semi-supervised segmentation with open-vocabulary pseudo-labels.

    >>> import semiovs_jax
    >>> model = semiovs_jax.load("runs/demo")
    >>> model.predict("photo.jpg").label.dtype
    dtype('uint8')

`train(config, workdir)`, `label(config)` and `evaluate(run)` are the functions of the modules of these names, which can
be called. JAX is imported with the first of these names that is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from data_pipelines.startup import end_on_interrupt

if TYPE_CHECKING:
    from semiovs_jax.evaluate import evaluate as evaluate
    from semiovs_jax.label import label as label
    from semiovs_jax.prediction.model import load as load
    from semiovs_jax.train import train as train

    __version__: str

end_on_interrupt()

_COMMANDS = ("evaluate", "label", "train")

__all__ = ["__version__", "load", *_COMMANDS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("semiovs-jax")
    if name == "load":
        return importlib.import_module("semiovs_jax.prediction.model").load
    if name in _COMMANDS:
        return importlib.import_module(f"semiovs_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
