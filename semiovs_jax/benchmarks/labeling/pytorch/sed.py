"""SED in PyTorch, with its published names. Needs the extra `bench`.

Source: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024, and its code's
`model.py`, as SemiOVS runs it.

The feature maps of the classes of all images are the rows of one tensor, [M, C, h, w], those of image 0 first. So the
images of a batch may keep different classes on the fast path, where the reference takes one image at a time.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from semiovs_jax.benchmarks.labeling.pytorch.convnext import ClipConvNext, ConvNextBlock
from semiovs_jax.benchmarks.labeling.pytorch.images import Normalize

_ATTENTION_EPS = 1e-6
_CHANNELS_PER_GROUP = 16


class _Rows(NamedTuple):
    """The classes that are left.

    Attributes:
        counts: Number of rows of each image, on the host.
        image: Int64 [M], the image of each row.
        slot: Int64 [M], image * T + class of each row.
    """

    counts: list[int]
    image: torch.Tensor
    slot: torch.Tensor

    @classmethod
    def all(cls, images: int, classes: int, device: torch.device) -> "_Rows":
        slot = torch.arange(images * classes, device=device)
        return cls([classes] * images, slot // classes, slot)

    def best(self, logits: torch.Tensor, top_k: int) -> tuple["_Rows", torch.Tensor]:
        """Rows that are among the `top_k` best of their image at one pixel or more, and their present positions.

        As in the reference, the host waits for the device once.
        """
        kept = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for part, mask in zip(logits.flatten(1).split(self.counts), kept.split(self.counts), strict=True):
            mask[part.topk(min(top_k, len(part)), dim=0).indices.flatten()] = True
        on_host = kept.cpu()
        position = on_host.nonzero()[:, 0].to(logits.device)
        counts = [int(mask.sum()) for mask in on_host.split(self.counts)]
        return _Rows(counts, self.image[position], self.slot[position]), position


class _LinearAttention(nn.Module):
    """Linear attention over the classes of each pixel."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Maps [M, h, w, C] to [M, h, w, C]."""
        heads = (self.num_heads, -1)
        query, key = (F.elu(layer(x)).unflatten(-1, heads) + 1 for layer in (self.q, self.k))
        value = self.v(x).unflatten(-1, heads)
        images = zip(*(part.split(counts) for part in (query, key, value)), strict=True)
        return torch.cat([self._attend(*image) for image in images]).flatten(-2)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        memory = torch.einsum("thwac,thwad->hwacd", key, value)
        total = torch.einsum("thwac,hwac->thwa", query, key.sum(0).to(query.dtype))
        return torch.einsum("thwac,hwacd->thwad", query, memory) / (total[..., None] + _ATTENTION_EPS)


class _ClassAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.attention = _LinearAttention(width, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.MLP = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.attention(self.norm1(x), counts)
        x = x + self.MLP(self.norm2(x))
        return x.permute(0, 3, 1, 2)


class _DoubleConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before in (in_channels, out_channels):
            layers += [
                nn.Conv2d(before, out_channels, 3, padding=1, bias=False),
                nn.GroupNorm(max(1, out_channels // _CHANNELS_PER_GROUP), out_channels),
                nn.ReLU(),
            ]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class _Decoder(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, guidance: int, kernel_size: int, num_heads: int):
        super().__init__()
        self.cnext = ConvNextBlock(in_channels, kernel_size)
        self.attention = _ClassAttention(in_channels, num_heads)
        self.up = nn.ConvTranspose2d(in_channels, in_channels - guidance, 2, 2)
        self.conv = _DoubleConv(in_channels + guidance, out_channels)

    def forward(
        self, x: torch.Tensor, image: torch.Tensor, correlation: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """Maps [M, C, h, w] to [M, C', 2 h, 2 w], guided by image and correlation, both [M, G, 2 h, 2 w]."""
        x = self.cnext(x)
        x = x + self.attention(x, counts)
        x = torch.cat([self.up(x), image, correlation], dim=1)
        return self.conv(x.contiguous(memory_format=torch.channels_last))


class Aggregator(nn.Module):
    """SED's aggregator. The arguments are the fields of `SedConfig`."""

    def __init__(
        self,
        num_templates: int,
        width: int,
        decoder_widths: Sequence[int],
        level_widths: Sequence[int],
        guidance_widths: Sequence[int],
        num_heads: int,
        kernel_sizes: Sequence[int],
    ):
        super().__init__()
        widths = [width, *decoder_widths]
        self.conv1 = nn.Conv2d(num_templates, width, 7, padding=3)
        self.decoder_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())
            for before, after in zip(level_widths, guidance_widths, strict=True)
        )
        self.decoder_corr_guidance_projection = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(before, after, 2, 2), nn.ReLU())
            for before, after in pairwise([num_templates, *guidance_widths])
        )
        self.decoder1, self.decoder2, self.decoder3 = (
            _Decoder(before, after, guidance, kernel_size, num_heads)
            for (before, after), guidance, kernel_size in zip(
                pairwise(widths), guidance_widths, kernel_sizes, strict=True
            )
        )
        self.head0, self.head1, self.head2, self.head = (nn.Conv2d(width, 1, 3, padding=1) for width in widths)

    def forward(
        self, dense: torch.Tensor, text: torch.Tensor, levels: Sequence[torch.Tensor], top_k: int = 0
    ) -> torch.Tensor:
        """Probabilities of every class.

        Args:
            dense: Float [N, h, w, D], the image tower's embeddings.
            text: Float32 [T, P, D], unit text embeddings.
            levels: The image tower's levels that guide the decoders, [N, C, s h, s w] for s = 2, 4, 8.
            top_k: Before each decoder, keep only the classes that are among the `top_k` best of one pixel or more; 0
                keeps all.

        Returns:
            Float32 [N, T, 8 h, 8 w]; 0 for classes that were dropped.
        """
        correlation = torch.einsum("nhwd,tpd->nthwp", F.normalize(dense.float(), dim=-1), text)
        images, classes = correlation.shape[:2]
        correlation = correlation.flatten(0, 1).permute(0, 3, 1, 2).to(self.conv1.weight.dtype)
        correlation = correlation.contiguous(memory_format=torch.channels_last)
        rows = _Rows.all(images, classes, dense.device)
        x = self.conv1(correlation)
        decoders, heads = (self.decoder1, self.decoder2, self.decoder3), (self.head0, self.head1, self.head2)
        projections = self.decoder_guidance_projection, self.decoder_corr_guidance_projection
        for decoder, head, level, guide, link in zip(decoders, heads, levels, *projections, strict=True):
            if top_k:
                rows, position = rows.best(head(x), top_k)
                x, correlation = x[position], correlation[position]
            correlation = link(correlation)
            x = decoder(x, guide(level)[rows.image], correlation, rows.counts)
        found = torch.sigmoid(self.head(x).float())[:, 0]
        if top_k:
            every = found.new_zeros(images * classes, *found.shape[1:])
            found = every.index_copy_(0, rows.slot, found)
        return found.unflatten(0, (images, classes))


class Sed(nn.Module):
    """SED without its text tower.

    Args:
        visual: Fields of `ClipConvNextConfig`.
        aggregator: Fields of `SedConfig`.
        concepts_per_class: Number of concepts of each class.
        mean: Mean of the channels of an image, in 0..1.
        std: Their standard deviation.
    """

    class_of_concept: torch.Tensor

    def __init__(
        self,
        visual: Mapping[str, Any],
        aggregator: Mapping[str, Any],
        concepts_per_class: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        counts = torch.tensor(concepts_per_class)
        classes = torch.arange(len(counts)).repeat_interleave(counts)
        self.register_buffer("class_of_concept", classes, persistent=False)
        self.normalize = Normalize(mean, std)
        self.clip_model = nn.ModuleDict({"visual": ClipConvNext(**visual)})
        self.transformer = Aggregator(**aggregator)

    def probabilities(self, image: torch.Tensor, text: torch.Tensor, top_k: int = 0) -> torch.Tensor:
        """Probabilities of the concepts.

        Args:
            image: Float32 [N, S, S, 3], RGB in 0..255.
            text: Float32 [T, P, D], unit embeddings of T concepts in P templates, those of class 0 first.
            top_k: As in `Aggregator`.

        Returns:
            Float32 [N, T, S / 4, S / 4].
        """
        levels, dense = self.clip_model["visual"](self.normalize(image))
        return self.transformer(dense, text, levels[-2::-1], top_k)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, label_size: tuple[int, int], top_k: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels images.

        Args:
            image: As in `probabilities`.
            text: As in `probabilities`.
            label_size: (height, width) of the labels.
            top_k: As in `Aggregator`.

        Returns:
            The most probable class of each pixel, int64 [N, H, W], and its probability, float32 [N, H, W].
        """
        probabilities = self.probabilities(image, text, top_k)
        confidence, concept = F.interpolate(probabilities, label_size, mode="bilinear").max(dim=1)
        return self.class_of_concept[concept], confidence
