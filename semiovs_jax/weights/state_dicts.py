"""Reads published state dicts, PyTorch files or safetensors, as numpy arrays by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import read_safetensors
from semiovs_jax.weights.keys import strip_prefix

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
    if not isinstance(loaded, Mapping) or not all(hasattr(value, "numpy") for value in loaded.values()):
        raise InputError(f"{path}: holds no state dict (tensors by name); fetch the published weights again")
    return {key: _to_numpy(value) for key, value in loaded.items()}


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
    except Exception as error:
        raise InputError(f"{path}: PyTorch cannot read it as plain weights ({error}); fetch it again") from error


def _to_numpy(tensor: Any) -> np.ndarray:
    # numpy has no bfloat16; float32 holds every value of it.
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
