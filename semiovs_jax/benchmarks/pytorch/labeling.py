"""A worker that labels images with PyTorch. Needs the extra `bench`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from semiovs_jax.benchmarks.pytorch.maskclip import MaskClip
from semiovs_jax.benchmarks.pytorch.sed import Sed


def make_module(architecture: Mapping[str, Any]) -> nn.Module:
    """The module of an architecture of `semiovs_jax.benchmarks.labelers`."""
    arguments = dict(architecture)
    return {"sed": Sed, "maskclip": MaskClip}[arguments.pop("kind")](**arguments)
