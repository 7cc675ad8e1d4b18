"""Counts the FLOPs of a function."""

from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """The FLOPs of a function as it is traced, whatever this machine; a multiplication with an addition is two.

    The count is of the form for accelerators: it has no loop over heads of attention, and the body of a loop counts
    once.

    Args:
      function: of arrays.
      *arguments: arrays, or shape structs.
    """
    cost = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).cost_analysis()
    assert cost is not None
    return float(cost["flops"])
