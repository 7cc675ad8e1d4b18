"""A traced function in primitives that converters to other formats know.

Calls are inlined and what concerns XLA alone is left out. A choice between platforms takes the form of those that are
not named. Two primitives are replaced by equal ones: jax2onnx has no remainder of arrays of unknown size, and ONNX
Runtime no pooling over more than three axes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

# Primitives that call a function, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def portable(traced: ClosedJaxpr) -> Callable[..., tuple[Any, ...]]:
    """The function that computes what `traced` computes; its own trace has portable primitives only.

    Args:
      traced: of `jax.make_jaxpr`, for any platform.
    """
    return lambda *arrays: tuple(_evaluate(traced, arrays))


def _evaluate(traced: Any, arrays: Sequence[Any]) -> list[Any]:
    jaxpr, constants = getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arrays), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    primitive, params = equation.primitive, equation.params
    if primitive.name in _CALLS:
        return _evaluate(params[_CALLS[primitive.name]], inputs)
    match primitive.name:
        case "platform_index":
            return [params["platforms"].index(None)]
        case "cond" if isinstance(inputs[0], int):
            return _evaluate(params["branches"][inputs[0]], inputs[1:])
        case "optimization_barrier":
            return inputs
        case "rem":
            return [inputs[0] - jax.lax.div(*inputs) * inputs[1]]
        case "reduce_window_max":
            return [_pool_planes(primitive, params, *inputs)]
    outputs = primitive.bind(*inputs, **params)
    return outputs if primitive.multiple_results else [outputs]


def _pool_planes(primitive: Any, params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Pools x [N, H, W, C] over H and W, with its images and channels in one axis."""
    planes = jnp.moveaxis(x, -1, 1)
    pooled = primitive.bind(planes.reshape(-1, *planes.shape[2:]), **{key: each[:-1] for key, each in params.items()})
    return jnp.moveaxis(pooled.reshape(*planes.shape[:2], *pooled.shape[1:]), 1, -1)
