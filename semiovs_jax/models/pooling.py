"""Max pooling whose gradient, on the CPU, needs no scatter."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from semiovs_jax.models.on_cpu import on_cpu

_SIZE, _STRIDE, _PADDING = 3, 2, 1


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 max pooling with a stride of 2 and a padding of 1.

    The gradient goes to the first maximum of a window, in the order of rows, as in PyTorch.

    Args:
      x: float [N, H, W, C].

    Returns:
      [N, ceil(H / 2), ceil(W / 2), C].
    """
    return on_cpu(_max_of_shifts, _pool)(x)


def _pool(x: jax.Array) -> jax.Array:
    border = ((_PADDING, _PADDING), (_PADDING, _PADDING))
    return nnx.max_pool(x, (_SIZE, _SIZE), strides=(_STRIDE, _STRIDE), padding=border)


@jax.custom_vjp
def _max_of_shifts(x: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, (shift for _, _, shift in _shifts(x)))


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _max_of_shifts(x), x


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    largest = _max_of_shifts(x)
    is_left, parts = jnp.ones(gradient.shape, bool), []
    for row, column, shift in _shifts(x):
        is_first = is_left & (shift == largest)
        is_left &= ~is_first
        parts.append(_place(jnp.where(is_first, gradient, 0), row, column, x.shape))
    total = functools.reduce(jnp.add, parts)
    return (total[:, _PADDING:-_PADDING, _PADDING:-_PADDING],)


_max_of_shifts.defvjp(_forward, _backward)


def _shifts(x: jax.Array) -> Iterator[tuple[int, int, jax.Array]]:
    """The element of all windows at each row and column of the window, in order."""
    height, width = (-(-length // _STRIDE) * _STRIDE for length in x.shape[1:3])
    border = (_PADDING, _PADDING)
    padded = jnp.pad(x, ((0, 0), border, border, (0, 0)), constant_values=-jnp.inf)
    for row in range(_SIZE):
        for column in range(_SIZE):
            yield row, column, padded[:, row : row + height : _STRIDE, column : column + width : _STRIDE]


def _place(values: jax.Array, row: int, column: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of one of the `_shifts`, zero elsewhere: [N, H + 2, W + 2, C]."""
    config = [(0, 0, 0)]
    for start, length, count in ((row, shape[1], values.shape[1]), (column, shape[2], values.shape[2])):
        end = length + 2 * _PADDING - start - (_STRIDE * (count - 1) + 1)
        config.append((start, end, _STRIDE - 1))
    return jax.lax.pad(values, jnp.zeros((), values.dtype), [*config, (0, 0, 0)])
