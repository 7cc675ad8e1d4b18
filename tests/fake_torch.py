"""A stand-in for PyTorch that returns given tensors: the tests need not install it."""

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeTensor:
    """A tensor as `semiovs_jax.weights.state_dicts` uses it."""

    def __init__(self, value: Any, dtype: str = "torch.float32"):
        self.value, self.dtype = np.asarray(value), dtype

    def numel(self) -> int:
        return self.value.size

    def element_size(self) -> int:
        return self.value.itemsize

    def detach(self) -> "FakeTensor":
        return self

    def float(self) -> "FakeTensor":
        return FakeTensor(self.value.astype(np.float32))

    def numpy(self) -> np.ndarray:
        assert self.dtype != "torch.bfloat16"
        return self.value


def fake_torch(content: Any) -> SimpleNamespace:
    """A module whose `load` returns `content`, or raises it if it is an exception."""

    def load(path, *, map_location, weights_only):
        assert (map_location, weights_only) == ("cpu", True)
        if isinstance(content, Exception):
            raise content
        return content

    safe = SimpleNamespace(safe_globals=lambda allowed: contextlib.nullcontext())
    return SimpleNamespace(load=load, serialization=safe)
