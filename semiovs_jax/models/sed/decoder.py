"""SED's decoder: planes of classes mixed in space, among classes, and made twice as fine under guidance.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py`. Planes are [N, T, h, w, C], see `class_planes`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.class_planes import per_class
from semiovs_jax.models.convnext import ConvNextBlock
from semiovs_jax.models.layers import full_precision, group_norm
from semiovs_jax.models.transformer import Mlp, layer_norm
from semiovs_jax.models.upsampling import ConvTranspose2x2, CornerConv, conv3x3

_ATTENTION_EPS = 1e-6


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
        self.norm1, self.norm2 = (group_norm(out_channels, dtype=dtype, rngs=rngs) for _ in range(2))

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
        shared = conv3x3(guidance, by_image.astype(dtype)) + corner.bias.astype(dtype)

        def finish(y: jax.Array) -> jax.Array:
            y = jax.nn.relu(self.norm1(y))
            return jax.nn.relu(self.norm2(conv3x3(y, self.conv2.astype(y.dtype))))

        def upsample(x: jax.Array, correlation_guidance: jax.Array) -> jax.Array:
            guided = per_class(lambda y: conv3x3(y, by_correlation.astype(y.dtype)), correlation_guidance)
            return per_class(finish, per_class(corner, x) + guided + shared[:, None])

        return upsample
