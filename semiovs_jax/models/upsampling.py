"""Planes made twice as fine: a transposed convolution, and the 3x3 convolution upon it in one with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution at stride 1 with a border of one zero."""
    border = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), border, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _interleave_phases(x: jax.Array) -> jax.Array:
    """[N, h, w, 4 C], two rows by two columns of pixels at each place, to [N, 2 h, 2 w, C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


class ConvTranspose2x2(nnx.Module):
    """Transposed convolution, 2x2 of stride 2: every pixel becomes four.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      dtype: compute dtype, None for that of the input.
      rngs: initializes the parameters.
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


# [r, s, a, d] is 1 where tap d of a 3x3 convolution at phase a of a corner (the last pixel before it or the first
# behind it) reads phase s of the coarse pixel r (before or behind the corner): d = 2 r + s - a.
_CORNER = np.array([[[[2 * r + s - a == d for d in range(3)] for a in range(2)] for s in range(2)] for r in range(2)])


@dataclasses.dataclass(frozen=True)
class CornerConv:
    """A 2x2 transposed convolution of stride 2 and a 3x3 convolution upon it, as one convolution.

    The 2x2 fine pixels around a corner of coarse pixels see only the 2x2 coarse pixels around it. So a 2x2
    convolution that runs over corners gives them all, with half of the multiplications and without the fine
    planes in between. Zero padding is the same for both; the transposed convolution's bias, which the padding
    lacks, is a plane of its own.

    Attributes:
      kernel: float [2, 2, in, 4 out].
      bias: float [1, 2 h, 2 w, out].
    """

    kernel: jax.Array
    bias: jax.Array

    @classmethod
    def compose(cls, up: ConvTranspose2x2, kernel: jax.Array, shape: tuple[int, int]) -> "CornerConv":
        """The composition of `up` and the convolution with `kernel` [3, 3, C, out] for coarse planes of `shape`."""
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
        return cls(composed.reshape(*composed.shape[:3], -1), conv3x3(plane.astype(kernel.dtype), kernel))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, in] to [N, 2 h, 2 w, out], the bias plane left to the caller."""
        return _interleave_phases(conv3x3(x, self.kernel.astype(x.dtype)))[:, 1:-1, 1:-1]
