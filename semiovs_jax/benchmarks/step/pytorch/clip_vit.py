"""MaskCLIP's vision transformer as SemiVL runs it, under the names of its published weights.

Source of the details: google-research/semivl `maskclip_vit.py`. Tokens are [N, T, D], maps [N, C, h, w].
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Tower:
    """Architecture of a tower; the fields are those of `semiovs_jax.models.clip.vit.ClipVitConfig`."""

    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    embed_dim: int = 512
    eps: float = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with packed projections of query, key and value."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: torch.Tensor, *, value_path: bool = False) -> torch.Tensor:
        """Maps tokens [N, T, D] to tokens [N, T, D]; in the value path, each token attends to itself alone."""
        if value_path:
            start = 2 * x.shape[-1]
            return self.out_proj(F.linear(x, self.in_proj_weight[start:], self.in_proj_bias[start:]))
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, *, eps: float):
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=eps)
        self.attn = nn.ModuleDict({"attn": Attention(width, num_heads)})
        self.ln2 = nn.LayerNorm(width, eps=eps)
        mlp = nn.Sequential(nn.Sequential(nn.Linear(width, mlp_width), nn.GELU()), nn.Linear(mlp_width, width))
        self.ffn = nn.ModuleDict({"layers": mlp})

    def forward(self, x: torch.Tensor, *, value_path: bool = False) -> torch.Tensor:
        """Maps tokens [N, T, D] to tokens [N, T, D]; `value_path` as in `Attention`."""
        x = x + self.attn["attn"](self.ln1(x), value_path=value_path)
        return x + self.ffn["layers"](self.ln2(x))


class ClipVit(nn.Module):
    """The tower with random weights and positions for the patches of square images.

    Args:
      tower: the architecture.
      image_size: side of the images, in pixels.
      out_layers: blocks whose value path is an output.
    """

    def __init__(self, tower: Tower, image_size: int, out_layers: Sequence[int] = ()):
        super().__init__()
        width, patch = tower.width, tower.patch_size
        side = -(-image_size // patch)
        self.out_layers = tuple(out_layers)
        self.patch_size = patch
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch, bias=False)})
        self.cls_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(width**-0.5 * torch.randn(1, 1 + side * side, width))
        self.ln0 = nn.LayerNorm(width, eps=tower.eps)
        self.layers = nn.ModuleList(
            Block(width, tower.num_heads, 4 * width, eps=tower.eps) for _ in range(tower.num_layers)
        )
        self.ln1 = nn.LayerNorm(width, eps=tower.eps)
        self.proj = nn.Conv2d(width, tower.embed_dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Computes features of images [N, 3, H, W].

        Returns:
          The value path of each of `out_layers`, [N, width, h, w], and the unit embeddings of the patches,
          [N, embed_dim, h, w], by the value path of the last block. Its attention has no effect on them.
        """
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        patches = self.patch_embed["projection"](x)
        grid = patches.shape[2:]
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = self.ln0(tokens + self.pos_embed)
        levels = []
        *blocks, last = self.layers
        for index, block in enumerate(blocks):
            if index in self.out_layers:
                levels.append(_as_map(block(tokens, value_path=True), grid))
            tokens = block(tokens)
        dense = self.proj(_as_map(self.ln1(last(tokens, value_path=True)), grid))
        return levels, F.normalize(dense, dim=1)


def _as_map(tokens: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Maps tokens [N, 1 + h * w, D] to [N, D, h, w], without the class token."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
