"""A worker that labels images with PyTorch; see `labeling.worker`. Needs the extra `bench`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from semiovs_jax.benchmarks.labeling.pytorch.maskclip import MaskClip
from semiovs_jax.benchmarks.labeling.pytorch.random_weights import draw_weights
from semiovs_jax.benchmarks.labeling.pytorch.sed import Sed
from semiovs_jax.benchmarks.labeling.worker import LabelingWorker, Task
from semiovs_jax.benchmarks.turns import serve

_MODULES: dict[str, type[nn.Module]] = {"sed": Sed, "maskclip": MaskClip}


def make_module(architecture: Mapping[str, Any]) -> nn.Module:
    """The module of an architecture of `labeling.models`, for inference."""
    arguments = {name: value for name, value in architecture.items() if name != "kind"}
    return _MODULES[architecture["kind"]](**arguments).eval().requires_grad_(False)


def write_weights(path: Path, architecture: Mapping[str, Any], seed: int = 0) -> None:
    """Draws weights and writes their state dict."""
    module = make_module(architecture)
    draw_weights(module, seed)
    save_file(module.state_dict(), path)


class TorchLabeling(LabelingWorker):
    """Labels in inference mode, with channels last in memory."""

    def load(self, task: Task) -> None:
        """Loads the state dict, strictly."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high" if task.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = task.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        architecture = task.architecture()
        module = make_module(architecture)
        module.load_state_dict(load_file(task.weights))
        half = task.precision == "bfloat16"
        dtype = torch.bfloat16 if half and not task.autocast else torch.float32
        for parameter in module.parameters():  # not the buffers: images are normalized in float32
            value = parameter.data.to(dtype)
            parameter.data = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        module.to(self._device)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=half and task.autocast)
        self._module = torch.compile(module) if task.compiled else module
        text, images = (torch.from_numpy(array).to(self._device) for array in task.arrays())
        pruning = (task.top_k,) if architecture["kind"] == "sed" else ()
        self._arguments = (images, text, tuple(task.label_size), *pruning)

    @torch.inference_mode()
    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels the batch."""
        with self._autocast:
            label, confidence = self._module(*self._arguments)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return label, confidence

    def to_host(self, array: Any) -> np.ndarray:
        """Copies a result."""
        return array.cpu().numpy()

    def peak_device_bytes(self) -> int | None:
        """The count of PyTorch's allocator."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None


if __name__ == "__main__":
    serve(TorchLabeling)
