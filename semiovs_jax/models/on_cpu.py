"""Functions with a form of their own for the CPU, where XLA lacks optimizations that it has for accelerators."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export

ArrayFunction = Callable[..., jax.Array]


def on_cpu(special: ArrayFunction, general: ArrayFunction) -> ArrayFunction:
    """The function of arrays that is computed as `special` on the CPU and as `general` elsewhere.

    This holds for its gradient, too. A compiled program has only the form of its own platform. The backward pass keeps
    the arguments and nothing else. On the CPU it is computed `together`. Arrays of unknown size are computed as
    `general` everywhere.

    Args:
      special: equal to `general` up to rounding. Both name the precision of their products: their gradients are traced
        outside of the caller's `jax.default_matmul_precision`.
      general: a function of arrays, by position.
    """

    @jax.custom_vjp
    def function(*arrays: jax.Array) -> jax.Array:
        if any(map(is_symbolic, arrays)):
            return general(*arrays)
        return jax.lax.platform_dependent(*arrays, cpu=special, default=general)

    def backward(arrays: tuple[jax.Array, ...], gradient: jax.Array) -> Any:
        def gradient_on_cpu(*read: jax.Array) -> Any:
            return together(*_gradient(special)(*together(*read)))

        return jax.lax.platform_dependent(gradient, *arrays, cpu=gradient_on_cpu, default=_gradient(general))

    function.defvjp(lambda *arrays: (function(*arrays), arrays), backward)
    return function


def is_symbolic(x: jax.Array) -> bool:
    """Whether a size of x is unknown while a program is exported for images of any size."""
    return any(map(jax.export.is_symbolic_dim, x.shape))


def together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the arrays as they are, none before all are computed. For the CPU's form of a backward pass.

    Around what it reads: XLA would compute what depends on the forward pass alone, such as a transposed copy of an
    activation, as soon as it can, and store it until the gradient arrives. Around its results: a weight is read for the
    last time before its gradient is there, so that its update needs no copy of it.
    """
    return jax.lax.optimization_barrier(arrays)


def _gradient(function: ArrayFunction) -> Callable[..., Any]:
    return lambda gradient, *arrays: jax.vjp(function, *arrays)[1](gradient)
