"""CLIP's vision transformer with MaskCLIP's value path, which computes a CLIP embedding of every patch.

Sources: Radford et al. 2021 (CLIP); Zhou et al., "Extract Free Dense Labels from CLIP", 2022 (MaskCLIP, value
path); google-research/semivl `maskclip_vit.py` (the choice of outputs).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.remat import remat_block
from semiovs_jax.models.transformer import Block, layer_norm

_CUBIC_A = -0.75  # torch's choice of Keys' parameter

# The differences between MaskCLIP and CLIP, which share weights; fields of `ClipVitConfig`.
MASKCLIP: dict[str, Any] = {"eps": 1e-6, "activation": "gelu"}


def cubic_matrix(source: int, target: int) -> np.ndarray:
    """Bicubic interpolation along one axis, as torch's `interpolate(align_corners=False)` without antialiasing.

    Args:
      source: length of the input.
      target: length of the output; sample i is at position (i + 0.5) * source / target - 0.5 of the input.

    Returns:
      Float64 [target, source]; taps beyond an end use the sample at that end.
    """
    a = _CUBIC_A
    position = (np.arange(target) + 0.5) * source / target - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        column = np.floor(position).astype(int) + tap
        x = np.abs(position - column)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        np.add.at(matrix, (np.arange(target), np.clip(column, 0, source - 1)), np.where(x <= 1, near, far))
    return matrix


def resize_positions(table: jax.Array, source: tuple[int, int], target: tuple[int, int]) -> jax.Array:
    """Bicubic interpolation of a position table, as in the reference.

    Args:
      table: float [1 + h * w, D]; the first row is the class token's position, which stays the same.
      source: (h, w) of the table's grid.
      target: (rows, columns) of the result's grid.

    Returns:
      [1 + rows * columns, D]. As in the reference, the table is returned as it is if the number of patches is the same,
      whatever the shape of the grid.
    """
    if math.prod(source) == math.prod(target):
        return table
    rows, columns = (jnp.asarray(cubic_matrix(*sides), table.dtype) for sides in zip(source, target, strict=True))
    grid = table[1:].reshape(*source, -1)
    patches = jnp.einsum("yi,xj,ijd->yxd", rows, columns, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:1], patches.reshape(-1, table.shape[1])])


@dataclasses.dataclass(frozen=True)
class ClipVitConfig:
    """Architecture of a CLIP vision transformer; the defaults are OpenAI's ViT-B/16.

    Attributes:
      patch_size: side of a square patch, in pixels.
      width: channels of a token.
      num_layers: transformer blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden channels of a block's MLP over `width`.
      embed_dim: channels of the space shared with the text tower.
      image_size: (height, width) in pixels whose patches the position table covers.
      eps: LayerNorm's epsilon (OpenAI 1e-5; SemiVL's MaskCLIP 1e-6).
      activation: "quick_gelu" (OpenAI) or "gelu" (exact; SemiVL's MaskCLIP).
    """

    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4
    embed_dim: int = 512
    image_size: tuple[int, int] = (224, 224)
    eps: float = 1e-5
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))  # JSON has lists

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


class ClipFeatures(NamedTuple):
    """Outputs of the tower; h and w are the image's sides in patches, rounded up.

    Attributes:
      levels: one [N, h, w, width] value path per requested layer.
      dense: [N, h, w, embed_dim], L2-normalized embedding of each patch, by the value path of the last block.
      pooled: [N, embed_dim], L2-normalized embedding of the image, by the class token.
    """

    levels: tuple[jax.Array, ...]
    dense: jax.Array
    pooled: jax.Array


class ClipVit(nnx.Module):
    """CLIP vision transformer; its embeddings are float32 or wider.

    Args:
      config: the architecture.
    """

    def __init__(self, config: ClipVitConfig, *, dtype: DTypeLike | None = None, remat: str = "none", rngs: nnx.Rngs):
        width = config.width
        patch = (config.patch_size, config.patch_size)
        normal = nnx.initializers.normal(width**-0.5)
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.patch_embed = nnx.Conv(
            3, width, patch, strides=patch, padding="VALID", use_bias=False, dtype=dtype, rngs=rngs
        )
        self.cls_token = nnx.Param(normal(rngs.params(), (width,)))
        self.pos_embed = nnx.Param(normal(rngs.params(), (1 + math.prod(config.grid), width)))
        self.pre_norm = layer_norm(width, eps=config.eps, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            Block(
                width,
                config.num_heads,
                round(width * config.mlp_ratio),
                eps=config.eps,
                activation=config.activation,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(config.num_layers)
        )
        self.final_norm = layer_norm(width, eps=config.eps, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(width, config.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, image: jax.Array, *, out_indices: Sequence[int] = ()) -> ClipFeatures:
        """Computes the features of images.

        Args:
          image: float [N, H, W, 3], normalized. Sides that are not multiples of the patch size are padded with zeros
            at the bottom and right.
          out_indices: 0-based blocks whose value path is returned in `levels`; that of the last block is taken
            after the final norm, as in the reference.

        Returns:
          `ClipFeatures`. Under jit, unused outputs are not computed: `dense` alone does not run the last block's
          attention.
        """
        x, grid = self._embed(image)
        call = remat_block(_call, self.remat)
        value_path = remat_block(Block.value_path, self.remat)
        levels = []
        value = x
        for index, layer in enumerate(self.layers):
            value = value_path(layer, x) if index in (*out_indices, len(self.layers) - 1) else value
            x = call(layer, x)
            if index == len(self.layers) - 1:
                x, value = self.final_norm(x), self.final_norm(value)
            if index in out_indices:
                levels.append(_as_map(value, grid))
        return ClipFeatures(
            levels=tuple(levels), dense=self._project(_as_map(value, grid)), pooled=self._project(x[:, 0])
        )

    def _embed(self, image: jax.Array) -> tuple[jax.Array, tuple[int, int]]:
        """Returns pre-normalized tokens [N, 1 + h * w, width], the class token first, and (h, w)."""
        patch = self.config.patch_size
        bottom, right = (-side % patch for side in image.shape[1:3])
        patches = self.patch_embed(jnp.pad(image, ((0, 0), (0, bottom), (0, right), (0, 0))))
        N, h, w, D = patches.shape
        cls_token = jnp.broadcast_to(self.cls_token[...].astype(patches.dtype), (N, 1, D))
        tokens = jnp.concatenate([cls_token, patches.reshape(N, h * w, D)], axis=1)
        positions = resize_positions(self.pos_embed[...], self.config.grid, (h, w))
        return self.pre_norm(tokens + positions.astype(patches.dtype)), (h, w)

    def _project(self, x: jax.Array) -> jax.Array:
        """Maps tokens [..., width] to unit vectors [..., embed_dim]."""
        embedding = self.projection(x)
        embedding = embedding.astype(jnp.promote_types(embedding.dtype, jnp.float32))
        return embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)


def _call(layer: Block, x: jax.Array) -> jax.Array:
    """A block's forward without its keyword-only mask, which nnx.remat does not accept."""
    return layer(x)


def _as_map(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Maps tokens [N, 1 + h * w, D] to a feature map [N, h, w, D], without the class token."""
    return tokens[:, 1:].reshape(tokens.shape[0], *grid, tokens.shape[-1])
