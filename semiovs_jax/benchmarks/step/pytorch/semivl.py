"""SemiVL's student and its frozen label maker, under the names of their published weights.

Source of the details: google-research/semivl `vlm.py` and `vlg_head.py`. Maps are [N, C, h, w]; the head folds the
classes into the batch.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from semiovs_jax.benchmarks.step.pytorch.clip_vit import Block, ClipVit, Tower
from semiovs_jax.benchmarks.step.pytorch.student import Student, with_perturbed

_CHANNELS_PER_GROUP = 16  # of group normalization
_LOGIT_SCALE = 100.0  # of the label maker's cosines
_CONCEPTS_PER_CLASS = 5  # about as many as the published vocabulary of VOC has: 98 for 21 classes


@dataclasses.dataclass(frozen=True)
class Head:
    """Architecture of the head; the fields are those of `semiovs_jax.models.semivl.vlg.VlgConfig`."""

    channels: int = 128
    text_channels: int = 128
    num_layers: int = 2
    num_heads: int = 4
    pool: int = 4
    skip_channels: tuple[int, ...] = (32, 16)
    up_channels: tuple[int, ...] = (64, 32)
    rates: tuple[int, ...] = (6, 12, 18)
    kernel_size: int = 7


def _conv_norm_relu(in_channels: int, out_channels: int, kernel: int, rate: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
    norm = nn.GroupNorm(max(1, out_channels // _CHANNELS_PER_GROUP), out_channels)
    return [conv, norm, nn.ReLU(inplace=True)]


class _Pooling(nn.Module):
    """The image-pooling branch of `_Aspp`."""

    def __init__(self, channels: int):
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gap(x).expand(-1, -1, *x.shape[2:])


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling with group normalization, added to its input."""

    def __init__(self, channels: int, rates: Sequence[int]):
        super().__init__()
        branches = [nn.Sequential(*_conv_norm_relu(channels, channels, 1))]
        branches += [nn.Sequential(*_conv_norm_relu(channels, channels, 3, rate)) for rate in rates]
        self.aspp_convs = nn.ModuleList([*branches, _Pooling(channels)])
        self.project = nn.Sequential(*_conv_norm_relu(len(self.aspp_convs) * channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(torch.cat([branch(x) for branch in self.aspp_convs], dim=1))


class _SemanticLayer(nn.Module):
    """Attention between the classes of a pooled pixel."""

    def __init__(self, head: Head):
        super().__init__()
        self.pool = head.pool
        self.transformer = Block(head.channels + head.text_channels, head.num_heads, 4 * head.channels, eps=1e-5)

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Maps x [N K, C, h, w] and projected text [K, T] to [N K, C, h, w]."""
        classes, channels = len(words), x.shape[1]
        pooled = F.avg_pool2d(x, self.pool)
        rows, columns = pooled.shape[2:]
        tokens = pooled.unflatten(0, (-1, classes)).permute(0, 3, 4, 1, 2).flatten(0, 2)
        tokens = torch.cat([tokens, words.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=-1)
        attended = self.transformer(tokens)[..., :channels].unflatten(0, (-1, rows, columns))
        attended = attended.permute(0, 3, 4, 1, 2).flatten(0, 1)
        return x + F.interpolate(attended, x.shape[2:], mode="bilinear", align_corners=True)


class _Up(nn.Module):
    """2x upsampling, then two convolutions with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, skip_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels - skip_channels, 2, 2)
        self.conv = nn.Sequential(
            *_conv_norm_relu(in_channels, out_channels, 3), *_conv_norm_relu(out_channels, out_channels, 3)
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Maps x [N K, in, h, w] and the skip connection [N, skip, a, b] to [N K, out, 2 h, 2 w]."""
        x = self.up(x)
        skip = F.interpolate(skip, x.shape[2:], mode="bilinear", align_corners=True)
        return self.conv(torch.cat([x, skip.repeat_interleave(len(x) // len(skip), dim=0)], dim=1))


class VlgHead(nn.Module):
    """Spatial reasoning, semantic reasoning, upsampling.

    Args:
      head: the architecture.
      level_width: channels of the backbone's levels.
      embed_dim: channels of the embeddings of patches and text.
    """

    def __init__(self, head: Head, level_width: int, embed_dim: int):
        super().__init__()
        planes = itertools.pairwise((head.channels, *head.up_channels))
        self.conv1 = nn.Conv2d(1, head.channels, head.kernel_size, padding=head.kernel_size // 2)
        self.aspp = _Aspp(head.channels, head.rates)
        self.text_proj = nn.Sequential(nn.Linear(embed_dim, head.text_channels), nn.ReLU())
        self.layers = nn.ModuleList(_SemanticLayer(head) for _ in range(head.num_layers))
        self.skip_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level_width, width, 3, padding=1), nn.ReLU(inplace=True))
            for width in head.skip_channels
        )
        for index, ((before, after), skip) in enumerate(zip(planes, head.skip_channels, strict=True)):
            self.add_module(f"up{index + 1}", _Up(before, after, skip))
        self.head = nn.Conv2d(head.up_channels[-1], 1, 3, padding=1)

    def forward(self, levels: Sequence[torch.Tensor], dense: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Computes logits [N, K, s h, s w], s two to the number of levels.

        Args:
          levels: [N, C, h, w], the shallowest first.
          dense: [N, D, h, w], embeddings of the patches.
          text: [K, D], embeddings of the class names.
        """
        unit_text = F.normalize(text, dim=-1)
        similarities = torch.einsum("ndhw,kd->nkhw", F.normalize(dense, dim=1), unit_text)
        x = self.aspp(self.conv1(similarities.flatten(0, 1)[:, None]))
        words = self.text_proj(unit_text)
        for layer in self.layers:
            x = layer(x, words)
        for index, (skip, level) in enumerate(zip(self.skip_proj, reversed(levels), strict=True)):
            x = self.get_submodule(f"up{index + 1}")(x, skip(level))
        return self.head(x).unflatten(0, (-1, len(text))).squeeze(2)


class SemiVL(Student):
    """CLIP's vision transformer with the VLG head, and a second, frozen tower that makes labels; random weights.

    The embeddings of words are random, too, and not in the state dict.

    Args:
      num_classes: channels of the logits.
      image_size: side of the square images, in pixels.
      tower: architecture of both towers.
      head: architecture of the head.
      out_layers: blocks whose value paths are inputs of the head.

    Attributes:
      text: [K, D], embeddings of the class names.
      concepts: [C, D], embeddings of the label maker's concepts, those of class 0 first.
      concepts_per_class: number of rows of each class.
    """

    text: torch.Tensor
    concepts: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        *,
        tower: Tower = Tower(),  # noqa: B008
        head: Head = Head(),
        out_layers: Sequence[int] = (0, 4),
    ):
        super().__init__()
        self.backbone = ClipVit(tower, image_size, out_layers)
        self.decode_head = VlgHead(head, tower.width, tower.embed_dim)
        self.clip_encoder = ClipVit(tower, image_size).requires_grad_(False)
        self.concepts_per_class = (_CONCEPTS_PER_CLASS,) * num_classes
        concepts = F.normalize(torch.randn(sum(self.concepts_per_class), tower.embed_dim), dim=-1)
        text = F.normalize(torch.randn(num_classes, tower.embed_dim), dim=-1)
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("concepts", concepts, persistent=False)
        for name, value in self.backbone.named_parameters():
            value.requires_grad_(name == "pos_embed" or ".attn." in name)

    def forward(self, x: torch.Tensor, channel_masks: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """See `Student`; the perturbed levels are the value paths and the embeddings."""
        levels, dense = self.backbone(x)
        pyramid = [*levels, dense]
        if channel_masks is not None:
            pyramid = [with_perturbed(*level) for level in zip(pyramid, channel_masks, strict=True)]
        logits = self.decode_head(pyramid[:-1], pyramid[-1], self.text)
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)

    def label_logits(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen tower's logits [N, K, H, W] of images [N, 3, H, W]: of a class, those of its best concept."""
        _, dense = self.clip_encoder(x)
        scores = torch.einsum("ndhw,cd->nchw", dense, self.concepts.to(dense.dtype))
        best = torch.stack([part.amax(1) for part in scores.split(self.concepts_per_class, dim=1)], dim=1)
        return _LOGIT_SCALE * F.interpolate(best, x.shape[2:], mode="bilinear", align_corners=False)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See `Student`; only the attention and the positions of the backbone are trained."""
        backbone = [value for value in self.backbone.parameters() if value.requires_grad]
        return {"backbone": backbone, "head": list(self.decode_head.parameters())}
