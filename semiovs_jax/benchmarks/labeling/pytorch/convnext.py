"""CLIP's ConvNeXt image tower in PyTorch, with the names of open_clip and timm. Needs the extra `bench`.

Sources: Liu et al., "A ConvNet for the 2020s", 2022; open_clip's `convnext_base_w_320` and `convnext_large_d_320`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of [N, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, H, W] to [N, C, H, W]. Channels-last tensors are not copied."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """x + gamma * pwconv2(gelu(pwconv1(norm(dwconv(x))))), with the names of ConvNeXt's authors.

    Args:
        channels: Input and output channels.
        kernel_size: Side of the depthwise filters.
    """

    def __init__(self, channels: int, kernel_size: int = 7):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, C, H, W] to [N, C, H, W]."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    def __init__(self, in_channels: int | None, channels: int, depth: int):
        super().__init__()
        self.downsample = (
            nn.Sequential(ChannelNorm(in_channels), nn.Conv2d(in_channels, channels, 2, 2))
            if in_channels
            else nn.Identity()
        )
        self.blocks = nn.Sequential(*(ConvNextBlock(channels) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class _Trunk(nn.Module):
    """timm's network; `head.norm` is the normalization before CLIP's head."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0]))
        pairs = pairwise((None, *widths))
        self.stages = nn.ModuleList(
            _Stage(before, after, depth) for (before, after), depth in zip(pairs, depths, strict=True) if after
        )
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(widths[-1], eps=1e-6)})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, embed_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ClipConvNext(nn.Module):
    """ConvNeXt image tower whose head is applied to every pixel.

    The arguments are the fields of `ClipConvNextConfig`.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], embed_dim: int, head_width: int):
        super().__init__()
        self.trunk = _Trunk(widths, depths)
        self.head = nn.ModuleDict(
            {"mlp": _Mlp(widths[-1], head_width, embed_dim)}
            if head_width
            else {"proj": nn.Linear(widths[-1], embed_dim, bias=False)}
        )

    def forward(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Computes the features of images.

        Args:
            image: Float [N, 3, H, W], normalized.

        Returns:
            The stages' outputs [N, C, H / s, W / s] at strides s = 4, 8, 16, 32, and CLIP's embedding
            [N, H / 32, W / 32, D] of every pixel of the last one, not normalized.
        """
        levels = self.trunk(image.to(next(self.parameters()).dtype))
        dense = self.trunk.head["norm"](levels[-1].permute(0, 2, 3, 1))
        for layer in self.head.values():
            dense = layer(dense)
        return levels, dense
