"""2x upsampling: a 2x2 transposed convolution, optionally fused with the 3x3 convolution that follows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.convolution import convolve


def _interleave_phases(x: jax.Array) -> jax.Array:
    """Rearranges [N, h, w, 4 C], the 2x2 output pixels of every input pixel, into [N, 2 h, 2 w, C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


class ConvTranspose2x2(nnx.Module):
    """2x2 transposed convolution of stride 2: every pixel becomes 2x2 pixels.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, in] to [N, 2 h, 2 w, out]."""
        dtype = self.dtype or x.dtype
        kernel = self.kernel.astype(dtype).transpose(2, 0, 1, 3).reshape(x.shape[-1], -1)
        return _interleave_phases(x.astype(dtype) @ kernel) + self.bias.astype(dtype)


# A corner is a point between coarse pixels. Along one axis, coarse pixel r (0 before the corner, 1 after it) consists
# of the fine pixels s = 0, 1. The fine pixels next to the corner are a = 0 (before it) and a = 1 (after it). Entry
# [r, s, a, d] is 1 where tap d of a 3x3 convolution at a reads fine pixel s of r: d = 2 r + s - a.
_CORNER = np.array([[[[2 * r + s - a == d for d in range(3)] for a in range(2)] for s in range(2)] for r in range(2)])


@dataclasses.dataclass(frozen=True)
class CornerConv:
    """A 2x2 transposed convolution of stride 2 and the 3x3 convolution that follows it, fused into one convolution.

    The 2x2 fine pixels around a corner depend only on the 2x2 coarse pixels around it. So one 2x2 convolution over all
    corners computes every fine pixel. It takes half of the multiplications, and the fine feature map in between is
    never stored. Zero padding is the same in both forms. The bias of the transposed convolution is not in the padding:
    its contribution is different at the border, and kept as a separate map.

    Attributes:
      kernel: float [2, 2, in, 4 out].
      bias: float [1, 2 h, 2 w, out], the contribution of the transposed convolution's bias.
    """

    kernel: jax.Array
    bias: jax.Array

    @classmethod
    def compose(cls, up: ConvTranspose2x2, kernel: jax.Array, shape: tuple[int, int]) -> "CornerConv":
        """Fuses `up` and a convolution with `kernel` [3, 3, C, out], for coarse feature maps of `shape`."""
        corner = jnp.asarray(_CORNER, kernel.dtype)
        composed = jnp.einsum(
            "stcu,deuo,rsad,qtbe->rqcabo",
            up.kernel[...],
            kernel,
            corner,
            corner,
            precision=jax.lax.Precision.HIGHEST,
            optimize="optimal",
        )
        plane = jnp.broadcast_to(up.bias[...], (1, 2 * shape[0], 2 * shape[1], up.bias.shape[0]))
        return cls(composed.reshape(*composed.shape[:3], -1), convolve(plane.astype(kernel.dtype), kernel))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, in] to [N, 2 h, 2 w, out]; the caller adds `bias`."""
        return _interleave_phases(convolve_corners(x, self.kernel.astype(x.dtype)))[:, 1:-1, 1:-1]


def convolve_corners(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 2x2 convolution over the corners of all pixels, also those of the border.

    Args:
      x: float [N, h, w, in].
      kernel: float [2, 2, in, out].

    Returns:
      float [N, h + 1, w + 1, out].
    """
    # Padded beforehand: else the filter of the kernel's gradient is larger than its image, and XLA swaps the two, for
    # which it has no fast form on the CPU.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
