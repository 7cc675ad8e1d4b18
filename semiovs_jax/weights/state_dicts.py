"""Reads published state dicts, PyTorch files or safetensors, as numpy arrays by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import read_safetensors
from semiovs_jax.weights.keys import strip_prefix

# The kind of weight files that this project writes with published names and layouts.
STATE_DICT = "state_dict"

# Keys under which trainers save the state dict, next to the optimizer's state. UniMatch and SemiVL use "model".
_WRAPPERS = ("state_dict", "model")
_PARALLEL = "module."

# What a pickled numpy.float64 names, by numpy 1 and numpy 2.
_NUMPY_SCALAR: list[Any] = [
    np.dtype,
    type(np.dtype(np.float64)),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a .safetensors file or, with PyTorch, of a checkpoint in any other file.

    The prefix `module.`, which PyTorch's data parallelism adds to every name, is removed.

    Raises:
      InputError: The file is missing or holds no state dict, or PyTorch is needed and not installed.
    """
    path = Path(path)
    arrays = read_safetensors(path)[0] if path.suffix == ".safetensors" else _read_pytorch(path)
    return strip_prefix(arrays, _PARALLEL) if all(key.startswith(_PARALLEL) for key in arrays) else arrays


def _read_pytorch(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; give the path of the file you fetched")
    loaded = _torch_load(path)
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(key, str) and hasattr(value, "numpy") for key, value in loaded.items()
    ):
        raise InputError(f"{path}: holds no state dict (tensors by name); fetch the published weights again")
    most = path.stat().st_size
    return {key: _to_numpy(path, key, value, most) for key, value in loaded.items()}


def _torch_load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: reading PyTorch files needs PyTorch, which is not installed; "
            "run `pip install 'semiovs-jax[convert]'`, or give a .safetensors file"
        ) from None
    try:
        # weights_only: otherwise loading an untrusted file runs code that it contains. UniMatch saves its best mIoU, a
        # numpy scalar, next to the weights.
        with torch.serialization.safe_globals(_NUMPY_SCALAR):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and PyTorch raise several types
        raise InputError(
            f"{path}: cannot be read as plain tensors ({_reason(error)}); it is damaged, or holds more than tensors, "
            "such as code, which is never run; fetch the published weights again"
        ) from error


def _reason(error: Exception) -> str:
    """PyTorch's message without its advice to load the file by running its code."""
    lines = [line.strip() for line in str(error).splitlines() if "weights_only" not in line]
    return " ".join(line for line in lines if line) or type(error).__name__


def _to_numpy(path: Path, name: str, tensor: Any, most: int) -> np.ndarray:
    """The values of a tensor; `most` is the number of bytes of its file."""
    if (size := tensor.numel() * tensor.element_size()) > most:  # repeated by its strides
        raise InputError(f"{path}: the tensor {name!r} claims {size:,} bytes, the file has {most:,}; fetch it again")
    try:
        # numpy has no bfloat16; float32 holds every value of it.
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{path}: the tensor {name!r} is no plain array ({error}); fetch the weights again") from error
