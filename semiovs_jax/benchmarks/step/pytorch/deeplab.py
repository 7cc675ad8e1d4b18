"""DeepLabV3+ on a dilated ResNet as the official SemiOVS trainer runs it, under the names of its published weights.

Source of the details: model/semseg/deeplabv3plus.py and model/backbone/resnet.py of wooseok-shin/SemiOVS.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from semiovs_jax.benchmarks.step.pytorch.student import Student, with_perturbed

STAGE_SIZES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def _conv_norm_relu(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, rate: int = 1) -> list:
    return [_conv(in_channels, out_channels, kernel, stride=stride, rate=rate), *_norm_relu(out_channels)]


def _conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    padding = rate * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation=rate, bias=False)


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; stride and dilation are those of the 3x3 convolution."""

    def __init__(self, in_channels: int, width: int, out_channels: int, *, stride: int = 1, rate: int = 1):
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride=stride, rate=rate)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        projects = stride != 1 or in_channels != out_channels
        self.downsample = (
            nn.Sequential(_conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))
            if projects
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x [N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Deep-stem ResNet with bottlenecks. Arguments as `semiovs_jax.models.deeplab.resnet.ResNet`."""

    def __init__(
        self,
        stage_sizes: Sequence[int],
        *,
        stem_widths: Sequence[int],
        widths: Sequence[int],
        expansion: int,
        dilate: Sequence[bool],
    ):
        super().__init__()
        first, second, features = stem_widths
        self.conv1 = nn.Sequential(
            *_conv_norm_relu(3, first, 3, stride=2), *_conv_norm_relu(first, second, 3), _conv(second, features, 3)
        )
        self.bn1 = nn.BatchNorm2d(features)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.num_stages = len(stage_sizes)
        rate = 1
        for index, (blocks, width, dilated) in enumerate(zip(stage_sizes, widths, (None, *dilate), strict=True)):
            previous_rate, rate = rate, rate * 2 if dilated else rate
            out = width * expansion
            stride = 2 if dilated is False else 1
            rest = [Bottleneck(out, width, out, rate=rate) for _ in range(blocks - 1)]
            entry = Bottleneck(features, width, out, stride=stride, rate=previous_rate)
            self.add_module(f"layer{index + 1}", nn.Sequential(entry, *rest))
            features = out
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps x [N, 3, H, W] to the outputs of the first and the last stage (strides 4 and 16 by default)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for index in range(self.num_stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
            features.append(x)
        return features[0], features[-1]


class _Pooling(nn.Module):
    """The image-pooling branch of `ASPP`."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(in_channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gap(x).expand(-1, -1, *x.shape[2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3, and an image-pooling branch; then a projection."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]):
        super().__init__()
        first, second, third = rates
        self.b0 = nn.Sequential(*_conv_norm_relu(in_channels, channels, 1))
        self.b1 = nn.Sequential(*_conv_norm_relu(in_channels, channels, 3, rate=first))
        self.b2 = nn.Sequential(*_conv_norm_relu(in_channels, channels, 3, rate=second))
        self.b3 = nn.Sequential(*_conv_norm_relu(in_channels, channels, 3, rate=third))
        self.b4 = _Pooling(in_channels, channels)
        self.project = nn.Sequential(*_conv_norm_relu(5 * channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x [N, in, h, w] to [N, channels, h, w]."""
        return self.project(torch.cat([self.b0(x), self.b1(x), self.b2(x), self.b3(x), self.b4(x)], dim=1))


class DeepLabV3Plus(Student):
    """DeepLabV3+ with random weights. Arguments as `semiovs_jax.models.deeplab.architecture.Architecture`."""

    def __init__(
        self,
        num_classes: int,
        stage_sizes: Sequence[int],
        *,
        stem_widths: Sequence[int] = (64, 64, 128),
        widths: Sequence[int] = (64, 128, 256, 512),
        expansion: int = 4,
        dilate: Sequence[bool] = (False, False, True),
        rates: Sequence[int] = (6, 12, 18),
        channels: int = 256,
        low_level_channels: int = 48,
    ):
        super().__init__()
        self.backbone = ResNet(stage_sizes, stem_widths=stem_widths, widths=widths, expansion=expansion, dilate=dilate)
        self.head = ASPP(widths[-1] * expansion, channels, rates)
        self.reduce = nn.Sequential(*_conv_norm_relu(widths[0] * expansion, low_level_channels, 1))
        self.fuse = nn.Sequential(
            *_conv_norm_relu(channels + low_level_channels, channels, 3), *_conv_norm_relu(channels, channels, 3)
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: torch.Tensor, channel_masks: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """See `Student`; the perturbed levels are the outputs of the first and the last stage."""
        low_level, high_level = self.backbone(x)
        if channel_masks is not None:
            low_level = with_perturbed(low_level, channel_masks[0])
            high_level = with_perturbed(high_level, channel_masks[1])
        context = _resize(self.head(high_level), low_level)
        logits = self.classifier(self.fuse(torch.cat([self.reduce(low_level), context], dim=1)))
        return _resize(logits, x)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See `Student`."""
        head = [value for name, value in self.named_parameters() if not name.startswith("backbone.")]
        return {"backbone": list(self.backbone.parameters()), "head": head}


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)
