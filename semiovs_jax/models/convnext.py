"""The ConvNeXt block, shared by CLIP's convolutional image tower and SED's aggregator.

Source: Liu et al., "A ConvNet for the 2020s", 2022.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.transformer import exact_gelu, layer_norm

_kernel_init = nnx.initializers.truncated_normal(0.02)


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution at stride 1; zero padding keeps the size.

    On CPUs it is a sum of shifted products, which XLA fuses into one loop. XLA's grouped convolution is about thirty
    times slower there.

    Args:
      x: float [N, H, W, C].
      kernel: float [k, k, 1, C], k odd.

    Returns:
      float [N, H, W, C].
    """
    size = kernel.shape[0]
    margin = size // 2

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((margin, margin), (margin, margin)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        _, height, width, _ = x.shape
        padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        result = sum(
            (
                padded[:, row : row + height, column : column + width] * kernel[row, column]
                for row in range(size)
                for column in range(size)
            ),
            start=jnp.zeros_like(x),
        )
        # Without a barrier, XLA fuses the sum into each of its consumers and computes it once for each.
        return jax.lax.optimization_barrier(result)

    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


class DepthwiseConv(nnx.Module):
    """`depthwise_conv` with bias.

    Args:
      channels: input and output channels.
      kernel_size: side of the filters, odd.
    """

    def __init__(self, channels: int, kernel_size: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (kernel_size, kernel_size, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, H, W, C] to [N, H, W, C]."""
        dtype = self.dtype or x.dtype
        return depthwise_conv(x.astype(dtype), self.kernel.astype(dtype)) + self.bias.astype(dtype)


class ConvNextBlock(nnx.Module):
    """x + gamma * contract(gelu(expand(norm(depthwise(x))))); the hidden layer has four times the channels.

    Args:
      channels: input and output channels.
      kernel_size: side of the depthwise filters.
      layer_scale: initial value of gamma.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        layer_scale: float = 1e-6,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.depthwise = DepthwiseConv(channels, kernel_size, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(channels, eps=1e-6, dtype=dtype, rngs=rngs)
        self.expand = nnx.Linear(channels, 4 * channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.contract = nnx.Linear(4 * channels, channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(channels, layer_scale))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, H, W, C] to [N, H, W, C]."""
        y = self.norm(self.depthwise(x))
        y = self.contract(exact_gelu(self.expand(y)))
        return x + self.gamma.astype(y.dtype) * y
