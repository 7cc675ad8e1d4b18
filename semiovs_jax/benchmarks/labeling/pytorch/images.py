"""Normalization of images, shared by the labelers in PyTorch."""

from collections.abc import Sequence

import torch
from torch import nn


class Normalize(nn.Module):
    """Normalizes RGB images in 0..255. Its statistics are not part of the state dict.

    Args:
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps float [N, H, W, 3] to [N, 3, H, W], channels last in memory."""
        return ((image / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
