"""What the steps need of a student, whatever its network."""

import abc
from collections.abc import Sequence

import torch
from torch import nn


class Student(nn.Module, abc.ABC):
    """A segmentation network. Images, features and logits are NCHW."""

    @abc.abstractmethod
    def forward(self, x: torch.Tensor, channel_masks: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Computes logits at the input's resolution.

        Args:
          x: normalized images [N, 3, H, W].
          channel_masks: for each perturbed level of features, [N, C, 1, 1], 0 or 2. The backbone runs once. The decoder
            runs once on the features and the multiplied features.

        Returns:
          [N, K, H, W]; with `channel_masks` [2 N, K, H, W], those of the multiplied features last.
        """

    @abc.abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by their group of the optimizer: "backbone" and "head"."""


def with_perturbed(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The features and, behind them in the batch, the same multiplied by channel masks."""
    return torch.cat([features, features * masks.to(features.dtype)])
