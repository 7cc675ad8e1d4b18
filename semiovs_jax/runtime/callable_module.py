"""Modules that can be called: `semiovs_jax.train(config, workdir)` beside `python -m` and imports from the module."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Lets a module be called like one of its functions.

    Args:
      module: its `__name__`.
      function: the function.
    """

    class CallableModule(ModuleType):
        __doc__ = function.__doc__
        __wrapped__ = staticmethod(function)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
