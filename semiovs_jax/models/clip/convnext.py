"""CLIP's ConvNeXt image tower with dense output: one embedding per pixel of its last feature map.

Sources: Liu et al., "A ConvNet for the 2020s", 2022; open_clip's `convnext_base_w_320` and
`convnext_large_d_320`; SED's dense variant of them (its open_clip, `timm_model.py`).
"""

import dataclasses
from typing import NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.convnext import ConvNextBlock
from semiovs_jax.models.precision import full_precision
from semiovs_jax.models.transformer import exact_gelu, layer_norm


@dataclasses.dataclass(frozen=True)
class ClipConvNextConfig:
    """Architecture of a ConvNeXt image tower; the defaults are those of `convnext_base_w_320`.

    Attributes:
      widths: channels of the four stages.
      depths: blocks of the four stages.
      embed_dim: channels of the space shared with the text tower.
      head_width: hidden channels of the head, 0 for a linear head (base; 1536 in large).
    """

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    embed_dim: int = 640
    head_width: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists only
        object.__setattr__(self, "depths", tuple(self.depths))


class ConvNextFeatures(NamedTuple):
    """Outputs of the tower.

    Attributes:
      levels: the stages' outputs, float [N, H / s, W / s, C] at strides s = 4, 8, 16, 32.
      dense: float [N, H / 32, W / 32, embed_dim], CLIP's embedding of every pixel of the last level, not normalized.
    """

    levels: tuple[jax.Array, ...]
    dense: jax.Array


class _Downsample(nnx.Module):
    """Normalization and a 2x2 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.norm = layer_norm(in_channels, eps=1e-6, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(in_channels, out_channels, (2, 2), strides=2, padding="VALID", dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class _Stage(nnx.Module):
    """Downsampling, except in the first stage, then blocks."""

    def __init__(
        self,
        in_channels: int | None,
        channels: int,
        depth: int,
        *,
        layer_scale: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.downsample = _Downsample(in_channels, channels, dtype=dtype, rngs=rngs) if in_channels else None
        self.blocks = nnx.List(
            ConvNextBlock(channels, layer_scale=layer_scale, dtype=dtype, rngs=rngs) for _ in range(depth)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.downsample(x) if self.downsample is not None else x
        for block in self.blocks:
            x = block(x)
        return x


class _Head(nnx.Module):
    """CLIP's image head: one linear layer, or two with GELU between them; the last has no bias."""

    def __init__(self, channels: int, hidden: int, embed_dim: int, *, dtype: DTypeLike | None, rngs: nnx.Rngs):
        self.norm = layer_norm(channels, eps=1e-6, dtype=dtype, rngs=rngs)
        self.hidden = nnx.Linear(channels, hidden, dtype=dtype, rngs=rngs) if hidden else None
        self.projection = nnx.Linear(hidden or channels, embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(x)
        x = exact_gelu(self.hidden(x)) if self.hidden is not None else x
        return self.projection(x)


class ClipConvNext(nnx.Module):
    """ConvNeXt image tower whose head is applied to every pixel (CLIP's is applied to their mean).

    Args:
      config: the architecture.
      layer_scale: initial value of the blocks' gamma.
    """

    def __init__(
        self,
        config: ClipConvNextConfig,
        *,
        layer_scale: float = 1e-6,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        widths = config.widths
        self.stem = nnx.Conv(3, widths[0], (4, 4), strides=4, padding="VALID", dtype=dtype, rngs=rngs)
        self.stem_norm = layer_norm(widths[0], eps=1e-6, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            _Stage(before, width, depth, layer_scale=layer_scale, dtype=dtype, rngs=rngs)
            for before, width, depth in zip((None, *widths[:-1]), widths, config.depths, strict=True)
        )
        self.head = _Head(widths[-1], config.head_width, config.embed_dim, dtype=dtype, rngs=rngs)

    def __call__(self, image: jax.Array) -> ConvNextFeatures:
        """Computes the features of images.

        Args:
          image: float [N, H, W, 3], normalized; rows and columns beyond a multiple of 32 are ignored.

        Returns:
          The features; `dense` is float32 or wider.
        """
        x = self.stem_norm(self.stem(image))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return ConvNextFeatures(tuple(levels), full_precision(self.head(x)))
