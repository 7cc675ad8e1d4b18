"""Counts the FLOPs of a function from its trace, which needs no compiler: XLA's own count is missing on GPU and TPU."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """The FLOPs of a function's matrix products and convolutions; a multiplication with an addition is two.

    What no result needs does not count, nor do products with the padding of a convolution, or with the zeros that a
    stride puts into its gradient. A loop counts as often as it runs if its trace says how often, else once. Of the
    forms by platform the default counts, and of the branches of a condition the one with the most.

    Args:
      function: of arrays; if it is jitted, its trace is kept.
      *arguments: arrays, or shape structs.
    """
    traced = function if hasattr(function, "trace") else jax.jit(function)
    jaxpr = traced.trace(*arguments).jaxpr.jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(needed)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: JaxprEqn) -> int:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            return _of_product(equation)
        case "conv_general_dilated":
            return _of_convolution(equation)
        case "scan":
            return params["length"] * _of_jaxpr(params["jaxpr"].jaxpr)
        case "cond":
            platforms = params.get("branches_platforms")
            branches = [_of_jaxpr(branch.jaxpr) for branch in params["branches"]]
            return branches[platforms.index(None)] if platforms else max(branches)
        case _:
            return sum(map(_of_jaxpr, _inner(params.values())))


def _inner(values: Any) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _of_product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: JaxprEqn) -> int:
    params = equation.params
    image, kernel, result = map(_shape, (*equation.invars, *equation.outvars))
    image_axes, kernel_axes, result_axes = params["dimension_numbers"]
    products = result[result_axes[0]] * result[result_axes[1]] * kernel[kernel_axes[1]]
    settings = (params[name] for name in ("padding", "window_strides", "lhs_dilation", "rhs_dilation"))
    for axis, ((before, _), stride, spread, dilation) in enumerate(zip(*settings, strict=True), start=2):
        taps = dilation * np.arange(kernel[kernel_axes[axis]])
        positions = stride * np.arange(result[result_axes[axis]])[:, None] + taps - before
        last = spread * (image[image_axes[axis]] - 1)
        products *= int(np.sum((positions >= 0) & (positions <= last) & (positions % spread == 0)))
    return 2 * products


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
