"""SED's decoder: planes of classes mixed in space, among classes, and made twice as fine under guidance.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py`. Planes are [N, T, h, w, C], see `class_planes`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.class_planes import per_class
from semiovs_jax.models.convnext import ConvNextBlock
from semiovs_jax.models.layers import full_precision
from semiovs_jax.models.transformer import Mlp, layer_norm

_CHANNELS_PER_GROUP = 16  # of group normalization
_ATTENTION_EPS = 1e-6


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
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
        return cls(composed.reshape(*composed.shape[:3], -1), _conv(plane.astype(kernel.dtype), kernel))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, in] to [N, 2 h, 2 w, out], the bias plane left to the caller."""
        return _interleave_phases(_conv(x, self.kernel.astype(x.dtype)))[:, 1:-1, 1:-1]


class ClassAttention(nnx.Module):
    """Linear attention among the classes of each pixel, and an MLP; no position, no output projection.

    Args:
      width: channels.
      num_heads: heads.
      dtype: compute dtype, None for that of the input.
      rngs: initializes the parameters.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.norm1 = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, activation="relu", dtype=dtype, rngs=rngs)

    def summarize(self, x: jax.Array, heard: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What classes say to all classes, to be added up over all of them.

        Args:
          x: float [N, T, h, w, C].
          heard: bool [N, T], the classes that say anything.

        Returns:
          Sums over classes of keys times values [N, h, w, heads, c, c] and of keys [N, h, w, heads, c].
        """
        y = self.norm1(x)
        keys = jnp.where(heard[:, :, None, None, None], jax.nn.elu(self.key(y)) + 1, 0)
        keys, values = (full_precision(self._split(part)) for part in (keys, self.value(y)))
        return jnp.einsum("nthwac,nthwad->nhwacd", keys, values), keys.sum(1)

    def __call__(self, x: jax.Array, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        """What classes [N, T, h, w, C] become, given `summarize` summed over all classes."""
        query = full_precision(self._split(jax.nn.elu(self.query(self.norm1(x))) + 1))
        memory, keys = sums
        heard = jnp.einsum("nthwac,nhwacd->nthwad", query, memory)
        heard = heard / (jnp.einsum("nthwac,nhwac->nthwa", query, keys)[..., None] + _ATTENTION_EPS)
        x = x + heard.reshape(x.shape).astype(x.dtype)
        return x + self.mlp(self.norm2(x))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class SedDecoder(nnx.Module):
    """One decoder: spatial mixing, class attention, then planes twice as fine under guidance.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      guidance_channels: channels of the guidance by the image, and of that by the correlation.
      kernel_size: side of the depthwise filters.
      num_heads: heads of the class attention.
      dtype: compute dtype, None for that of the input.
      rngs: initializes the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        guidance_channels: int,
        *,
        kernel_size: int,
        num_heads: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        kept = in_channels - guidance_channels
        init = nnx.initializers.he_normal()
        self.block = ConvNextBlock(in_channels, kernel_size=kernel_size, dtype=dtype, rngs=rngs)
        self.attention = ClassAttention(in_channels, num_heads, dtype=dtype, rngs=rngs)
        self.up = ConvTranspose2x2(in_channels, kept, dtype=dtype, rngs=rngs)
        self.conv1 = nnx.Param(init(rngs.params(), (3, 3, kept + 2 * guidance_channels, out_channels)))
        self.conv2 = nnx.Param(init(rngs.params(), (3, 3, out_channels, out_channels)))
        self.norm1, self.norm2 = (
            nnx.GroupNorm(
                out_channels,
                num_groups=max(1, out_channels // _CHANNELS_PER_GROUP),
                epsilon=1e-5,
                use_fast_variance=False,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(2)
        )

    def upsampler(self, guidance: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The second half of the decoder, what all classes share computed beforehand.

        Args:
          guidance: float [N, 2 h, 2 w, G], by the image.

        Returns:
          A function of planes [N, T, h, w, C] and their guidance by the correlation [N, T, 2 h, 2 w, G] to
          [N, T, 2 h, 2 w, out].
        """
        _, height, width, channels = guidance.shape
        dtype = guidance.dtype
        kept = self.up.bias.shape[0]
        own, by_image, by_correlation = jnp.split(self.conv1[...], (kept, kept + channels), axis=2)
        corner = CornerConv.compose(self.up, own, (height // 2, width // 2))
        shared = _conv(guidance, by_image.astype(dtype)) + corner.bias.astype(dtype)

        def finish(y: jax.Array) -> jax.Array:
            y = jax.nn.relu(self.norm1(y))
            return jax.nn.relu(self.norm2(_conv(y, self.conv2.astype(y.dtype))))

        def upsample(x: jax.Array, correlation_guidance: jax.Array) -> jax.Array:
            guided = per_class(lambda y: _conv(y, by_correlation.astype(y.dtype)), correlation_guidance)
            return per_class(finish, per_class(corner, x) + guided + shared[:, None])

        return upsample
