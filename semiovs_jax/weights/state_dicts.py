"""Reading published state dicts: PyTorch files and safetensors, as numpy arrays by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import read_safetensors

# Training programs save the state dict below one of these names, beside an optimizer's state.
_WRAPPERS = ("state_dict", "model")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict from a .safetensors file or, with PyTorch, from any other.

    A leading `module.`, which PyTorch's data parallelism adds to every name, is taken away.

    Raises:
      InputError: The file is missing or is no state dict, or PyTorch is needed and not installed.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; give the path of the file you fetched")
    loaded = _torch_load(path)
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(hasattr(value, "numpy") for value in loaded.values()):
        raise InputError(f"{path}: holds no state dict (tensors by name); fetch the published weights again")
    arrays = {key: _to_numpy(value) for key, value in loaded.items()}
    if all(key.startswith("module.") for key in arrays):
        return {key.removeprefix("module."): value for key, value in arrays.items()}
    return arrays


def _torch_load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: reading PyTorch files needs PyTorch, which is not installed; "
            "run `pip install 'semiovs-jax[convert]'`, or give a .safetensors file"
        ) from None
    try:
        # Published files may come from anywhere: without weights_only, loading one runs code it contains.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: PyTorch cannot read it as plain weights ({error}); fetch it again") from error


def _to_numpy(tensor: Any) -> np.ndarray:
    # numpy has no bfloat16; float32 holds every value of it.
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
