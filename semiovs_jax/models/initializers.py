"""Initializers that draw on the host.

JAX compiles its random numbers for every shape anew, which for a ResNet takes longer than to read pretrained weights.
Drawn on the host, they are also the same on every device.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

_DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "uniform": lambda generator, shape: generator.uniform(-math.sqrt(3), math.sqrt(3), shape),
}


def variance_scaling(
    scale: float, mode: Literal["fan_in", "fan_out"], distribution: Literal["normal", "uniform"]
) -> nnx.Initializer:
    """Random numbers of mean 0 and variance `scale` / fan, as `jax.nn.initializers.variance_scaling`.

    Args:
      scale: 2 for a layer before a ReLU (He et al. 2015); 1/3, uniform, is torch's default.
      mode: the fan: the channels that come in or go out, times the area of the kernel.
      distribution: of the numbers.

    Returns:
      A function (key, shape, dtype) -> kernel; `shape` ends with the channels in and out.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        *area, channels_in, channels_out = shape
        fan = math.prod(area) * (channels_in if mode == "fan_in" else channels_out)

        def draw(words: jax.Array) -> np.ndarray:
            generator = np.random.Generator(np.random.Philox(np.asarray(words).ravel().tolist()))
            return (math.sqrt(scale / fan) * _DRAWS[distribution](generator, tuple(shape))).astype(dtype)

        words = jax.random.key_data(key)
        if isinstance(words, jax.core.Tracer):  # mostly of `jax.eval_shape`, which only asks for the shape
            return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), words)
        return jnp.asarray(draw(words))

    return initialize
