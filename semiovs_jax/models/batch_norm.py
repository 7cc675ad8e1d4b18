"""Batch normalization with PyTorch's statistics, and a gradient that keeps little for the backward pass."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


def full_precision(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats to float32; leaves float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes with the mean and the variance of x over all axes but the last.

    Computes in float32, or float64 as x. The backward pass keeps x in its own dtype and the statistics, nothing else:
    automatic differentiation would keep x once more, centered and in float32.

    Args:
      x: float [..., C].
      scale: float [C].
      bias: float [C].
      epsilon: added to the variance.

    Returns:
      The result, with the shape and dtype of x; mean and biased variance, float [C]. The gradient of these two is taken
      as zero: they are for running statistics.
    """
    mean, var = _statistics(x)
    return _apply(x, mean, var, scale, bias, epsilon), mean, var


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(x.ndim - 1))
    y = full_precision(x)
    mean = y.mean(axes)
    # Two passes: E[y^2] - E[y]^2 cancels in float32.
    return mean, jnp.square(y - mean).mean(axes)


def _apply(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    y = (full_precision(x) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
    return y.astype(x.dtype)


def _forward(x, scale, bias, epsilon):
    y, mean, var = normalize_batch(x, scale, bias, epsilon)
    return (y, mean, var), (x, mean, var, scale, bias)


def _backward(epsilon, kept, gradients):
    x, mean, var, scale, bias = kept
    gradient = full_precision(gradients[0])
    axes = tuple(range(x.ndim - 1))
    inverse = jax.lax.rsqrt(var + epsilon)
    normalized = (full_precision(x) - mean) * inverse
    of_bias = gradient.sum(axes)
    of_scale = (gradient * normalized).sum(axes)
    count = x.size // x.shape[-1]
    of_x = inverse * scale * (gradient - (of_bias + normalized * of_scale) / count)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


normalize_batch.defvjp(_forward, _backward)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). The backward pass keeps the result, which the next convolution keeps as well.

    On the CPU, the result is stored once. XLA would fuse it into each of its readers, and compute it there again, down
    to the first block of a residual stage.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: jax.lax.optimization_barrier(_rectify(x)), default=_rectify)


def _rectify(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


relu.defvjp(_relu_forward, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))
