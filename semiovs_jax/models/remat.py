"""Rematerialization: what the backward pass computes again, where it could keep activations of the forward pass."""

from collections.abc import Callable
from typing import Any

from flax import nnx

# From the most memory to the least: of nothing, of residual and transformer blocks, and also of what is before and
# after them. Of a block, only the input is kept.
REMATS = ("none", "blocks", "full")


def remat_block(call: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """The call of a residual or transformer block under one of `REMATS`."""
    return call if remat == "none" else nnx.remat(call)


def remat_rest(call: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """The call of a student's stem or head under one of `REMATS`."""
    return nnx.remat(call) if remat == "full" else call
