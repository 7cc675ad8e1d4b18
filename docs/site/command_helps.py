"""Prints what `--help` of commands prints, as JSON: python docs/site/command_helps.py semiovs_jax.main ...

Each command runs in a fork of this process, which has imported the libraries once: a fifth of the time.
"""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests`
_LIBRARIES = ("jax", "flax.nnx", "orbax.checkpoint", "grain", "transformers", "tensorflow_datasets", "PIL.Image")


def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints."""
    from semiovs_jax.__main__ import run_module

    spec = importlib.util.find_spec(module)
    name = f"{module}.__main__" if spec and spec.submodule_search_locations else module
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        run_module(name, [f"python -m {module}", "--help"])
    if not printed.getvalue():
        raise ValueError(f"{module}: --help prints nothing")
    return printed.getvalue()


def main(modules: list[str]) -> None:
    """Prints the helps of modules by their names."""
    os.environ |= {"COLUMNS": "100", "JAX_PLATFORMS": "cpu"}
    for library in _LIBRARIES:
        importlib.import_module(library)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        helps = pool.map(help_of, modules, chunksize=1)
    print(json.dumps(dict(zip(modules, helps, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
