"""Convolutions of square kernels with PyTorch's symmetric padding, NHWC.

On the CPU, XLA's convolution transposes what its gradient reads, and multiplies the zeros of the padding. There, a 1x1
convolution is one matrix product, and a dilated one that mostly reads padding is a sum of matrix products, each over
the area in which its tap reads the image.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from semiovs_jax.models.on_cpu import is_symbolic, on_cpu
from semiovs_jax.models.precision import matmul_precision

# Share of multiplications with padding from which a sum of products is used. Not tuned: in the ASPP it takes the rates
# 6, 12 and 18 at crops of 161 px, where the step was measured, and 12 and 18 at 321 px.
_LEAST_PADDING = 0.4


@functools.partial(jax.jit, static_argnames=("stride", "dilation"))  # traced once for layers of equal shapes
def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolves x with a padding of dilation * (k // 2) on each side.

    Args:
      x: float [N, H, W, in].
      kernel: float [k, k, in, out], k odd, of the dtype of x.
      stride: of both axes.
      dilation: of both axes.

    Returns:
      float [N, ceil(H / stride), ceil(W / stride), out].
    """
    precision = matmul_precision()
    general = special = functools.partial(_convolve, stride=stride, dilation=dilation, precision=precision)
    if kernel.shape[0] == 1:
        special = functools.partial(_product, stride=stride, precision=precision)
    elif stride == 1 and _mostly_padding(x, kernel.shape[0], dilation):
        special = functools.partial(_sum_of_products, dilation=dilation, precision=precision)
    return on_cpu(special, general)(x, kernel)


def _convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int, precision: str | None = None
) -> jax.Array:
    padding = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        rhs_dilation=(dilation, dilation),
        precision=precision,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _product(x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: str | None = None) -> jax.Array:
    """A 1x1 convolution. With all pixels in one axis, its gradient needs no transposed copies."""
    x = x[:, ::stride, ::stride]
    products = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return products.reshape(*x.shape[:-1], kernel.shape[-1])


def _sum_of_products(x: jax.Array, kernel: jax.Array, *, dilation: int, precision: str | None = None) -> jax.Array:
    shape, result = x.shape[1:3], jnp.zeros((*x.shape[:3], kernel.shape[-1]), x.dtype)
    for row, top, bottom in _taps(shape[0], kernel.shape[0], dilation):
        for column, left, right in _taps(shape[1], kernel.shape[1], dilation):
            read = x[:, top.start : top.stop, left.start : left.stop]
            products = _product(read, kernel[row : row + 1, column : column + 1], precision=precision)
            result = result.at[:, bottom, right].add(products)
    return result


def _taps(length: int, size: int, dilation: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis, each tap that reads the image: its index, what it reads, and where the result is."""
    for tap in range(size):
        offset = dilation * (tap - size // 2)
        if abs(offset) < length:
            read = slice(max(offset, 0), length + min(offset, 0))
            yield tap, read, slice(read.start - offset, read.stop - offset)


def _mostly_padding(x: jax.Array, size: int, dilation: int) -> bool:
    return not is_symbolic(x) and _padding_share(x.shape[1:3], size, dilation) >= _LEAST_PADDING


def _padding_share(shape: tuple[int, ...], size: int, dilation: int) -> float:
    """Share of a convolution's multiplications whose factor is padding."""
    used = 1.0
    for length in shape:
        used *= sum(read.stop - read.start for _, read, _ in _taps(length, size, dilation)) / (size * length)
    return 1 - used
