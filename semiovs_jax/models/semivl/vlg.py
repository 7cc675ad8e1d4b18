"""SemiVL's vision-language guided (VLG) head, which decodes the similarity of patches to each class name.

Source: Hoyer et al., "SemiVL: Semi-Supervised Semantic Segmentation with Vision-Language Guidance", 2024, and
google-research/semivl `vlg_head.py`. Feature maps are [N, K, h, w, C], see `class_planes`. Convolutions treat the
classes as batch, so memory grows with their number.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.class_planes import per_class, pool, unpool
from semiovs_jax.models.convolution import convolve
from semiovs_jax.models.layers import head_init, resize_bilinear
from semiovs_jax.models.normalization import GroupNorm, relu
from semiovs_jax.models.precision import full_precision
from semiovs_jax.models.transformer import Block
from semiovs_jax.models.upsampling import ConvTranspose2x2, CornerConv

_NORM_EPS = 1e-12  # smallest length of a vector that becomes a unit vector


@dataclasses.dataclass(frozen=True)
class VlgConfig:
    """Architecture of a head; the defaults are the published ones.

    Attributes:
      channels: channels of a class's feature map before upsampling.
      text_channels: channels of the projected text.
      num_layers: semantic layers, in which the classes of a pixel attend to each other.
      num_heads: attention heads of a semantic layer.
      pool: side of the average pooling before a semantic layer.
      skip_channels: channels of each projected backbone level, the deepest first.
      up_channels: channels after each 2x upsampling, one per level.
      rates: dilations of the 3x3 convolutions of the spatial pyramid.
      kernel_size: side of the convolution on the similarity.
    """

    channels: int = 128
    text_channels: int = 128
    num_layers: int = 2
    num_heads: int = 4
    pool: int = 4
    skip_channels: tuple[int, ...] = (32, 16)
    up_channels: tuple[int, ...] = (64, 32)
    rates: tuple[int, ...] = (6, 12, 18)
    kernel_size: int = 7


def unit(x: jax.Array) -> jax.Array:
    """Normalizes vectors [..., D] to length 1, in float32 or wider; zero stays zero."""
    x = full_precision(x)
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _NORM_EPS**2))


def similarity(dense: jax.Array, text: jax.Array) -> jax.Array:
    """Cosine similarities [N, K, h, w] of patches [N, h, w, D] and text [K, D], float32 or wider."""
    return jnp.einsum("nhwd,kd->nkhw", unit(dense), unit(text), precision=jax.lax.Precision.HIGHEST)


class GroupAspp(nnx.Module):
    """Atrous spatial pyramid pooling with group normalization, added to its input.

    Args:
      channels: channels of input, branches and output.
      rates: dilations of the 3x3 branches; there are also a 1x1 and an image-pooling branch.
    """

    def __init__(self, channels: int, rates: Sequence[int], *, dtype: DTypeLike | None = None, rngs: nnx.Rngs):
        def conv(size: int, rate: int) -> nnx.Conv:
            return nnx.Conv(
                channels,
                channels,
                (size, size),
                padding=((rate * (size // 2),) * 2,) * 2,
                kernel_dilation=rate,
                use_bias=False,
                kernel_init=head_init,
                dtype=dtype,
                rngs=rngs,
            )

        self.branches = nnx.List([conv(1, 1), *(conv(3, rate) for rate in rates), conv(1, 1)])
        self.norms = nnx.List(GroupNorm(channels, dtype=dtype, rngs=rngs) for _ in self.branches)
        self.project = nnx.Param(head_init(rngs.params(), (1, 1, len(self.branches) * channels, channels)))
        self.project_norm = GroupNorm(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, h, w, C] to [N, h, w, C]; the input of the last branch is the mean over h and w."""
        kernels = jnp.split(self.project[0, 0].astype(x.dtype), len(self.branches))
        mean = full_precision(x).mean((1, 2), keepdims=True).astype(x.dtype)
        inputs = [x] * (len(self.branches) - 1) + [mean]
        # Equal to one product with the concatenated branches, without the memory of the concatenation.
        y = sum(
            relu(norm(convolve(part, branch.kernel.astype(x.dtype), dilation=branch.kernel_dilation))) @ kernel
            for branch, norm, part, kernel in zip(self.branches, self.norms, inputs, kernels, strict=True)
        )
        return x + relu(self.project_norm(y))


class Upsample(nnx.Module):
    """2x upsampling, then two 3x3 convolutions with a skip connection from the backbone.

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      skip_channels: channels of the skip connection.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.up = ConvTranspose2x2(in_channels, in_channels - skip_channels, dtype=dtype, rngs=rngs)
        self.conv1 = nnx.Param(head_init(rngs.params(), (3, 3, in_channels, out_channels)))
        self.conv2 = nnx.Param(head_init(rngs.params(), (3, 3, out_channels, out_channels)))
        self.norm1, self.norm2 = (GroupNorm(out_channels, dtype=dtype, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        """Maps x [N, K, h, w, in] and the skip connection [N, a, b, skip] to [N, K, 2 h, 2 w, out]."""
        _, _, h, w, _ = x.shape
        own, by_skip = jnp.split(self.conv1[...], (self.up.bias.shape[0],), axis=2)
        corner = CornerConv.compose(self.up, own, (h, w))
        skip = resize_bilinear(skip, (2 * h, 2 * w), align_corners=True)
        # The skip connection adds the same to every class: compute it once.
        shared = convolve(skip, by_skip.astype(x.dtype)) + corner.bias.astype(x.dtype)
        return per_class(self._finish, per_class(corner, x) + shared[:, None])

    def _finish(self, y: jax.Array) -> jax.Array:
        y = relu(self.norm1(y))
        return relu(self.norm2(convolve(y, self.conv2.astype(y.dtype))))


class VlgHead(nnx.Module):
    """The head: spatial reasoning, semantic reasoning, upsampling. Similarity and logits are float32 or wider.

    Args:
      config: the architecture.
      level_widths: channels of the backbone's levels, the shallowest first.
      embed_dim: channels of the embeddings of patches and text.
    """

    def __init__(
        self,
        config: VlgConfig,
        level_widths: Sequence[int],
        embed_dim: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        def conv(before: int, after: int, size: int, dtype: DTypeLike | None = dtype) -> nnx.Conv:
            border = ((size - 1) // 2,) * 2
            return nnx.Conv(
                before, after, (size, size), padding=(border, border), kernel_init=head_init, dtype=dtype, rngs=rngs
            )

        width = config.channels + config.text_channels
        planes = (config.channels, *config.up_channels)
        self.config = config
        self.dtype = dtype
        self.embed = conv(1, config.channels, config.kernel_size)
        self.aspp = GroupAspp(config.channels, config.rates, dtype=dtype, rngs=rngs)
        self.text = nnx.Linear(embed_dim, config.text_channels, kernel_init=head_init, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            Block(width, config.num_heads, 4 * config.channels, eps=1e-5, activation="gelu", dtype=dtype, rngs=rngs)
            for _ in range(config.num_layers)
        )
        self.skips = nnx.List(
            conv(before, after, 3) for before, after in zip(level_widths[::-1], config.skip_channels, strict=True)
        )
        self.ups = nnx.List(
            Upsample(before, after, skip, dtype=dtype, rngs=rngs)
            for (before, after), skip in zip(itertools.pairwise(planes), config.skip_channels, strict=True)
        )
        self.classifier = conv(planes[-1], 1, 3, None)

    def __call__(self, levels: tuple[jax.Array, ...], dense: jax.Array, text: jax.Array) -> jax.Array:
        """Computes the logits of every class.

        Args:
          levels: the backbone's levels [N, h, w, C], the shallowest first.
          dense: float [N, h, w, D], embeddings of the patches, not necessarily normalized.
          text: float [K, D], embeddings of the class names, not necessarily normalized.

        Returns:
          [N, s h, s w, K], float32 or wider; s is two to the number of levels.

        Raises:
          ValueError: the grid is smaller than the pooling window.
        """
        if min(dense.shape[1:3]) < self.config.pool:
            window = self.config.pool
            raise ValueError(
                f"the image has {dense.shape[1:3]} patches, fewer than the head's pooling window of {window} x {window}"
                "; use larger images"
            )
        x = self.reason(similarity(dense, text), text)
        for up, skip, level in zip(self.ups, self.skips, levels[::-1], strict=True):
            x = up(x, relu(skip(level)).astype(x.dtype))
        logits = per_class(lambda y: self.classifier(full_precision(y)), x)
        return jnp.moveaxis(logits[..., 0], 1, -1)

    def reason(self, similarities: jax.Array, text: jax.Array) -> jax.Array:
        """Spatial and semantic reasoning: similarities [N, K, h, w] and text [K, D] to features [N, K, h, w, C]."""
        x = similarities[..., None]
        x = per_class(lambda y: self.aspp(self.embed(y)), x if self.dtype is None else x.astype(self.dtype))
        words = relu(self.text(unit(text))).astype(x.dtype)
        N, K, h, w, C = x.shape
        for layer in self.layers:
            pooled = pool(x, self.config.pool)
            a, b = pooled.shape[2:4]
            tokens = pooled.transpose(0, 2, 3, 1, 4).reshape(-1, K, C)
            tokens = jnp.concatenate([tokens, jnp.broadcast_to(words, (tokens.shape[0], *words.shape))], axis=-1)
            attended = layer(tokens)[..., :C].reshape(N, a, b, K, C).transpose(0, 3, 1, 2, 4)
            x = x + unpool(attended, (h, w))
        return x
