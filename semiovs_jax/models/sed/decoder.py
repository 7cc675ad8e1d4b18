"""SED's decoder: spatial mixing, class attention, then guided 2x upsampling of the feature maps of every class.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py`. Feature maps are [N, T, h, w, C], see `class_planes`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.class_planes import per_class
from semiovs_jax.models.convnext import ConvNextBlock
from semiovs_jax.models.convolution import convolve
from semiovs_jax.models.normalization import GroupNorm, relu
from semiovs_jax.models.precision import full_precision
from semiovs_jax.models.transformer import Mlp, layer_norm
from semiovs_jax.models.upsampling import ConvTranspose2x2, CornerConv

_ATTENTION_EPS = 1e-6
_AXES = "nthwacd"  # images, classes, height, width, heads, channels of keys, channels of values


def multiply_pixelwise(axes: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.einsum(axes, x, y)` of small matrices, one a pixel and head.

    On a GPU it is multiplications and a sum: for matrix products, XLA would transpose the feature maps, and compute
    what comes before and after with the classes as the last axis.

    Args:
      axes: of `_AXES`, in that order: "nthwac,nthwad->nhwacd".
      x: float, with the axes before the comma.
      y: float, with the axes after it.
    """
    terms, result = axes.split("->")

    def on_gpu(*factors: jax.Array) -> jax.Array:
        spread = (
            jnp.expand_dims(factor, [i for i, axis in enumerate(_AXES) if axis not in term])
            for factor, term in zip(factors, terms.split(","), strict=True)
        )
        return functools.reduce(jnp.multiply, spread).sum([i for i, axis in enumerate(_AXES) if axis not in result])

    return jax.lax.platform_dependent(x, y, cuda=on_gpu, default=functools.partial(jnp.einsum, axes))


class ClassAttention(nnx.Module):
    """Linear attention over the classes of each pixel, and an MLP; no positions, no output projection.

    Args:
      width: channels.
      num_heads: attention heads.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.norm1 = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, eps=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(width, 4 * width, activation="relu", dtype=dtype, rngs=rngs)

    def summarize(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Key-value sums of the linear attention over classes; sums of several calls add up.

        Args:
          x: float [N, T, h, w, C].
          mask: bool [N, T], the active class slots; the others are left out.

        Returns:
          Sums over classes of keys times values [N, h, w, heads, c, c] and of keys [N, h, w, heads, c].
        """
        y = self.norm1(x)
        keys = jnp.where(mask[:, :, None, None, None], jax.nn.elu(self.key(y)) + 1, 0)
        keys, values = (full_precision(self._split(part)) for part in (keys, self.value(y)))
        return multiply_pixelwise("nthwac,nthwad->nhwacd", keys, values), keys.sum(1)

    def __call__(self, x: jax.Array, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Maps classes [N, T, h, w, C] to [N, T, h, w, C], given the `sums` over all classes."""
        query = full_precision(self._split(jax.nn.elu(self.query(self.norm1(x))) + 1))
        memory, keys = sums
        attended = multiply_pixelwise("nthwac,nhwacd->nthwad", query, memory)
        attended = attended / (multiply_pixelwise("nthwac,nhwac->nthwa", query, keys)[..., None] + _ATTENTION_EPS)
        x = x + attended.reshape(x.shape).astype(x.dtype)
        return x + self.mlp(self.norm2(x))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class SedDecoder(nnx.Module):
    """One decoder: spatial mixing, class attention, then guided 2x upsampling.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      guidance_channels: channels of the image guidance, and of the correlation guidance.
      kernel_size: side of the depthwise filters.
      num_heads: heads of the class attention.
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
        self.norm1, self.norm2 = (GroupNorm(out_channels, dtype=dtype, rngs=rngs) for _ in range(2))

    def upsampler(self, guidance: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Returns the upsampling half of the decoder, with the class-independent terms precomputed.

        Args:
          guidance: float [N, 2 h, 2 w, G], image guidance.

        Returns:
          A function from features [N, T, h, w, C] and correlation guidance [N, T, 2 h, 2 w, G] to features
          [N, T, 2 h, 2 w, out].
        """
        _, height, width, channels = guidance.shape
        dtype = guidance.dtype
        kept = self.up.bias.shape[0]
        own, by_image, by_correlation = jnp.split(self.conv1[...], (kept, kept + channels), axis=2)
        corner = CornerConv.compose(self.up, own, (height // 2, width // 2))
        shared = convolve(guidance, by_image.astype(dtype)) + corner.bias.astype(dtype)

        def finish(y: jax.Array) -> jax.Array:
            y = relu(self.norm1(y))
            return relu(self.norm2(convolve(y, self.conv2.astype(y.dtype))))

        def upsample(x: jax.Array, correlation_guidance: jax.Array) -> jax.Array:
            guided = per_class(lambda y: convolve(y, by_correlation.astype(y.dtype)), correlation_guidance)
            return per_class(finish, per_class(corner, x) + guided + shared[:, None])

        return upsample
