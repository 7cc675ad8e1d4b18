"""Normalization with PyTorch's statistics, and ReLU. Their gradients keep little for the backward pass."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.on_cpu import together
from semiovs_jax.models.precision import full_precision

_CHANNELS_PER_GROUP = 16  # of group normalization


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last, with torch's running statistics.

    Normalizes with the biased variance and accumulates the unbiased one: running = (1 - 0.1) running + 0.1 batch.
    Statistics are float32 (or float64, as the input), the result has the input's dtype. Under jit they cover
    the global batch, whatever its sharding. `nnx.view(module, use_running_average=...)` chooses the mode.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Takes the mode that `nnx.view` sets."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes x [..., C].

        Raises:
          ValueError: There is one value per channel, whose variance is undefined.
        """
        if self.use_running_average:
            return _normalize(x, self.mean[...], self.var[...], self.scale[...], self.bias[...], self.epsilon)
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(
                f"batch normalization of shape {x.shape}: the variance of one value per channel is undefined; use a "
                "batch of 2 or more"
            )
        y, mean, var = normalize_batch(x, self.scale[...], self.bias[...], self.epsilon)
        self._accumulate(self.mean, mean)
        self._accumulate(self.var, var * (count / (count - 1)))
        return y

    def _accumulate(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        old = running[...]
        new = old + self.momentum * (jax.lax.stop_gradient(batch).astype(old.dtype) - old)
        # `running[...] = new` would look up the tracer's sharding, which searches the whole trace.
        running.set_value(new)


class GroupNorm(nnx.Module):
    """Group normalization with one group per 16 channels, at least one, and torch's epsilon."""

    def __init__(self, channels: int, *, dtype: DTypeLike | None = None, epsilon: float = 1e-5, rngs: nnx.Rngs):
        self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (channels,)))
        self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (channels,)))
        self.groups = max(1, channels // _CHANNELS_PER_GROUP)
        self.dtype = dtype
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes x [N, ..., C], each image by itself."""
        y = x if self.dtype is None else x.astype(self.dtype)
        return normalize_groups(y, self.scale[...], self.bias[...], self.groups, self.epsilon)


@functools.partial(jax.jit, static_argnums=3)  # traced once for layers of equal shapes, as the functions below
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
    return _normalize_batch(x, scale, bias, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean, var = _statistics(x)
    return _normalize(x, mean, var, scale, bias, epsilon), mean, var


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(x.ndim - 1))
    y = full_precision(x)
    mean = y.mean(axes)
    # Two passes: E[y^2] - E[y]^2 cancels in float32.
    return mean, jnp.square(y - mean).mean(axes)


@jax.jit
def _normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    y = (full_precision(x) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
    return y.astype(x.dtype)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[Any, Any]:
    y, mean, var = _normalize_batch(x, scale, bias, epsilon)
    return (y, mean, var), (x, mean, var, scale, bias)


def _backward(epsilon: float, kept: Any, gradients: Any) -> tuple[jax.Array, ...]:
    x, mean, var, scale, bias = kept

    def gradient_of(gradient: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
        wide = full_precision(gradient)
        axes = tuple(range(x.ndim - 1))
        inverse = jax.lax.rsqrt(var + epsilon)
        normalized = (full_precision(x) - mean) * inverse
        of_bias = wide.sum(axes)
        of_scale = (wide * normalized).sum(axes)
        count = x.size // x.shape[-1]
        of_x = inverse * scale * (wide - (of_bias + normalized * of_scale) / count)
        return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)

    return _by_platform(gradient_of, gradients[0], x)


_normalize_batch.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(3, 4))
def normalize_groups(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """Normalizes with the mean and the biased variance of each image and group of channels.

    Computes in float32, or float64 as x. The backward pass keeps x in its own dtype and the statistics, nothing else.

    Args:
      x: float [N, ..., C].
      scale: float [C].
      bias: float [C].
      groups: number of groups of consecutive channels; divides C.
      epsilon: added to the variance.

    Returns:
      The result, with the shape and dtype of x.
    """
    return _normalize_groups(x, scale, bias, groups, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize_groups(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    return _groups_forward(x, scale, bias, groups, epsilon)[0]


def _groups_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float
) -> tuple[jax.Array, Any]:
    y = full_precision(x)
    mean = _mean_of_groups(_sum_of_pixels(y), x, groups)
    var = _mean_of_groups(_sum_of_pixels(jnp.square(y - mean)), x, groups)
    return _normalize(x, mean, var, scale, bias, epsilon), (x, mean, var, scale, bias)


def _groups_backward(groups: int, epsilon: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, var, scale, bias = kept

    def gradient_of(gradient: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
        wide = full_precision(gradient)
        inverse = jax.lax.rsqrt(var + epsilon)
        normalized = (full_precision(x) - mean) * inverse
        of_bias, of_scale = _sum_of_pixels(wide), _sum_of_pixels(wide * normalized)  # of each image
        shift, slope = (_mean_of_groups(part * scale, x, groups) for part in (of_bias, of_scale))
        of_x = inverse * (wide * scale - shift - normalized * slope)
        return of_x.astype(x.dtype), of_scale.sum(0).astype(scale.dtype), of_bias.sum(0).astype(bias.dtype)

    return _by_platform(gradient_of, gradient, x)


_normalize_groups.defvjp(_groups_forward, _groups_backward)


def _by_platform(backward: Callable[..., tuple[jax.Array, ...]], *read: jax.Array) -> tuple[jax.Array, ...]:
    """The backward pass; on the CPU, its arguments are `together`."""
    return jax.lax.platform_dependent(*read, cpu=lambda *read: backward(*together(*read)), default=backward)


def _sum_of_pixels(x: jax.Array) -> jax.Array:
    """Maps [N, ..., C] to [N, C]: channels stay the last axis, along which processors add several values at a time."""
    return x.sum(tuple(range(1, x.ndim - 1)))


def _mean_of_groups(sums: jax.Array, x: jax.Array, groups: int) -> jax.Array:
    """The mean of each group by sums [N, C] over the pixels of x, for each of its channels: [N, 1, ..., C]."""
    pixels = math.prod(x.shape[1:-1])
    channels = sums.shape[1] // groups
    mean = sums.reshape(-1, groups, channels).sum(-1, keepdims=True) / (pixels * channels)
    return jnp.broadcast_to(mean, (*mean.shape[:2], channels)).reshape(-1, *(1,) * (x.ndim - 2), sums.shape[1])


@jax.jit
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). The backward pass keeps the result, which the next convolution keeps as well.

    On the CPU, the result is stored once. XLA would fuse it into each of its readers, and compute it there again, down
    to the first block of a residual stage.
    """
    return _relu(x)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x, cpu=lambda x: jax.lax.optimization_barrier(_rectify(x)), default=_rectify)


def _rectify(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = _relu(x)
    return y, y


_relu.defvjp(_relu_forward, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))
