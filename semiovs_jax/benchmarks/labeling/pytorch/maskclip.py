"""MaskCLIP in PyTorch, with OpenAI's names. Needs the extra `bench`.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; Zhou et al.,
"Extract Free Dense Labels from CLIP", 2022; google-research/semivl, `model/vlm.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from semiovs_jax.benchmarks.labeling.pytorch.images import Normalize


class _QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": _QuickGelu}


class _Attention(nn.Module):
    """Self-attention with the names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens [N, T, D] to [N, T, D]."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))

    def value_path(self, x: torch.Tensor) -> torch.Tensor:
        """Attention of each token to itself alone."""
        width = x.shape[-1]
        return self.out_proj(F.linear(x, self.in_proj_weight[-width:], self.in_proj_bias[-width:]))


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, hidden: int, eps: float, activation: str):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, num_heads)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, hidden),
                "gelu": _ACTIVATIONS[activation](),
                "c_proj": nn.Linear(hidden, width),
            }
        )

    def forward(self, x: torch.Tensor, value_path: bool = False) -> torch.Tensor:
        attend = self.attn.value_path if value_path else self.attn
        x = x + attend(self.ln_1(x))
        y = self.ln_2(x)
        for layer in self.mlp.values():
            y = layer(y)
        return x + y


class _Transformer(nn.Module):
    def __init__(self, blocks: Iterable[_Block]):
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps tokens [N, 1 + T, D] to the value path [N, T, D] of the last block, without the class token."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x)
        return last(x[:, 1:], value_path=True)


class DenseClipVit(nn.Module):
    """CLIP's vision transformer with MaskCLIP's value path in the last block.

    The arguments are the fields of `ClipVitConfig`.
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        embed_dim: int,
        image_size: Sequence[int],
        eps: float,
        activation: str,
    ):
        super().__init__()
        self.grid = [side // patch_size for side in image_size]
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + math.prod(self.grid), width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        hidden = round(width * mlp_ratio)
        blocks = (_Block(width, num_heads, hidden, eps, activation) for _ in range(num_layers))
        self.transformer = _Transformer(blocks)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Computes the unit embedding of every patch.

        Args:
            image: Float [N, 3, H, W], normalized. It is padded with zeros to whole patches, below and to the right.

        Returns:
            Float32 [N, h, w, D].
        """
        patch = self.conv1.stride[0]
        bottom, right = (-side % int(patch) for side in image.shape[2:])
        patches = self.conv1(F.pad(image.to(self.conv1.weight.dtype), (0, right, 0, bottom)))
        grid = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        x = self.ln_pre(torch.cat([class_token, tokens], dim=1) + self._positions(grid))
        x = self.ln_post(self.transformer(x)) @ self.proj
        return F.normalize(x.float(), dim=-1).unflatten(1, grid)

    def _positions(self, grid: Sequence[int]) -> torch.Tensor:
        """The position table [1 + h * w, D] for a grid of h x w patches."""
        table = self.positional_embedding
        if math.prod(grid) == len(table) - 1:
            return table
        patches = table[1:].T.unflatten(1, self.grid)[None]
        patches = F.interpolate(patches, list(grid), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], patches[0].flatten(1).T])


class MaskClip(nn.Module):
    """MaskCLIP without its text tower.

    Args:
        visual: Fields of `ClipVitConfig`.
        concepts_per_class: Number of concepts of each class.
        logit_scale: Factor of the cosine before the softmax.
        mean: Mean of the channels of an image, in 0..1.
        std: Their standard deviation.
    """

    def __init__(
        self,
        visual: Mapping[str, Any],
        concepts_per_class: Sequence[int],
        logit_scale: float,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.visual = DenseClipVit(**visual)
        self.concepts_per_class = list(concepts_per_class)
        self.logit_scale = logit_scale

    def scores(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Scores of the classes: the greatest cosine of each class's concepts.

        Args:
            image: Float32 [N, S, S, 3], RGB in 0..255.
            text: Float32 [C, D], unit embeddings of the concepts, those of class 0 first.

        Returns:
            Float32 [N, K, h, w], for patches.
        """
        cosines = torch.einsum("nhwd,cd->nchw", self.visual(self.normalize(image)), text).float()
        return torch.stack([part.amax(dim=1) for part in cosines.split(self.concepts_per_class, dim=1)], dim=1)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, label_size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels images.

        Args:
            image: As in `scores`.
            text: As in `scores`.
            label_size: (height, width) of the labels.

        Returns:
            The most probable class of each pixel, int64 [N, H, W], and its probability, float32 [N, H, W].
        """
        resized = F.interpolate(self.scores(image, text), label_size, mode="bilinear")
        confidence, label = (self.logit_scale * resized).softmax(dim=1).max(dim=1)
        return label, confidence
