"""The ConvNeXt block, shared by CLIP's convolutional image tower and SED's aggregator.

Source: Liu et al., "A ConvNet for the 2020s", 2022.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.precision import full_precision
from semiovs_jax.models.transformer import exact_gelu, layer_norm

_kernel_init = nnx.initializers.truncated_normal(0.02)

# Side of the largest filters for which cuDNN has fast grouped convolutions (an H100, bfloat16; docs/performance.md).
_LARGEST_FAST_FILTER = 7


@jax.jit  # traced once for layers of equal shapes
def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution at stride 1; zero padding keeps the size.

    On CPUs, and on NVIDIA's GPUs for large filters, it is a sum of shifted products, which XLA fuses into one loop.
    XLA's grouped convolution is many times slower there.

    Args:
      x: float [N, H, W, C].
      kernel: float [k, k, 1, C], k odd.

    Returns:
      float [N, H, W, C].
    """
    on_gpu = _sum_of_shifts if kernel.shape[0] > _LARGEST_FAST_FILTER else _grouped
    return jax.lax.platform_dependent(x, kernel, cpu=_sum_of_shifts, cuda=on_gpu, default=_grouped)


def _grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    margin = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((margin, margin), (margin, margin)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size = kernel.shape[0]
    margin = size // 2
    _, height, width, _ = x.shape
    # Stored before the sum: else a GPU compares the position of everything it reads with the border.
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))))
    weights = full_precision(kernel)
    result = sum(
        (
            full_precision(padded[:, row : row + height, column : column + width]) * weights[row, column]
            for row in range(size)
            for column in range(size)
        ),
        start=jnp.zeros(x.shape, weights.dtype),
    )
    # Without a barrier, XLA fuses the sum into each of its consumers and computes it once for each.
    return jax.lax.optimization_barrier(result.astype(x.dtype))


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
