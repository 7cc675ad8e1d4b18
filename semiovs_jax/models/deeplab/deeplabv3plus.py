"""DeepLabV3+ (Chen et al. 2018) as the official SemiOVS and UniMatch trainers build it.

Source of the details: model/semseg/deeplabv3plus.py of wooseok-shin/SemiOVS.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.deeplab.resnet import ResNet
from semiovs_jax.models.layers import (
    ConvNorm,
    head_init,
    masked_variants,
    resize_bilinear,
    split_variants,
    zero_outside,
)
from semiovs_jax.models.precision import full_precision
from semiovs_jax.models.remat import remat_rest


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3, and an image-pooling branch; then a projection."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: Sequence[int],
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(ConvNorm, dtype=dtype, rngs=rngs)
        dilated = [conv(in_channels, channels, 3, dilation=rate) for rate in rates]
        self.branches = nnx.List([conv(in_channels, channels, 1), *dilated])
        self.pool = conv(in_channels, channels, 1)
        self.project = conv((len(rates) + 2) * channels, channels, 1)

    def __call__(self, x: jax.Array, size: jax.Array | None = None) -> jax.Array:
        """Maps x [N, h, w, in], zero outside `size`, to [N, h, w, channels]."""
        area = x.shape[1] * x.shape[2] if size is None else size.prod(axis=1)[:, None, None, None]
        mean = (full_precision(x).sum((1, 2), keepdims=True) / area).astype(x.dtype)
        pooled = self.pool(mean)
        y = [branch(x, size) for branch in self.branches]
        y.append(jnp.broadcast_to(pooled, (*x.shape[:3], pooled.shape[-1])))
        return self.project(jnp.concatenate(y, axis=-1), size)


class DeepLabV3Plus(nnx.Module):
    """DeepLabV3+ on a ResNet.

    Attributes:
      perturbed_channels: Channels of the features that `channel_masks` multiply: stages 1 and 4.
    """

    fixed_size: ClassVar[bool] = False
    mixes_images: ClassVar[bool] = True
    size_multiple: int = 1
    class_embedding_dim: int | None = None

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        *,
        rates: Sequence[int] = (6, 12, 18),
        channels: int = 256,
        low_level_channels: int = 48,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(ConvNorm, dtype=dtype, rngs=rngs)
        low_level, high_level = backbone.channels[0], backbone.channels[-1]
        self.backbone = backbone
        self.aspp = ASPP(high_level, channels, rates, dtype=dtype, rngs=rngs)
        self.low_level = conv(low_level, low_level_channels, 1)
        self.fuse = nnx.List([conv(channels + low_level_channels, channels, 3), conv(channels, channels, 3)])
        self.classifier = nnx.Conv(channels, num_classes, (1, 1), kernel_init=head_init, rngs=rngs)
        self.perturbed_channels: tuple[int, ...] = (low_level, high_level)
        self.dtype = dtype

    def __call__(
        self,
        x: jax.Array,
        *,
        channel_masks: tuple[jax.Array, ...] | None = None,
        size: jax.Array | None = None,
    ) -> jax.Array:
        """Computes logits at the input's resolution.

        Args:
          x: Normalized images [N, H, W, 3], floating point.
          channel_masks: See `Student`. The decoder runs once, so that its batch statistics cover all variants.
          size: True sizes, int32 [N, 2], of images padded on the right and bottom. The logits on the true
            area are those of the unpadded image; outside it they are garbage. Evaluation only.

        Returns:
          Logits [N, H, W, K], or [m, N, H, W, K] with `channel_masks`; float32 (float64 for a float64 x).

        Raises:
          ValueError: `size` is given together with batch statistics, which would count the padding.
        """
        if size is not None and not self.aspp.pool.norm.use_running_average:
            raise ValueError(
                "size is for evaluation: batch statistics would count the padding; pass train=False or no size"
            )
        height, width = x.shape[1:3]
        x = zero_outside(x if self.dtype is None else x.astype(self.dtype), size)
        features, sizes = self.backbone(x, size)
        low_level, high_level = features[0], features[-1]
        if channel_masks is not None:
            low_masks, high_masks = channel_masks
            low_level, high_level = masked_variants(low_level, low_masks), masked_variants(high_level, high_masks)
        decode = remat_rest(DeepLabV3Plus._decode, self.backbone.remat)
        logits = decode(self, low_level, high_level, sizes[0], sizes[-1])
        logits = resize_bilinear(logits, (height, width), align_corners=True, source_size=sizes[0], target_size=size)
        return logits if channel_masks is None else split_variants(logits, len(channel_masks[0]))

    @staticmethod
    def parameter_groups(params: dict[Any, Any]) -> dict[Any, Any]:
        """See `Student`: "backbone" below that key, "head" elsewhere."""
        return {
            key: jax.tree.map(lambda _, group="backbone" if key == "backbone" else "head": group, subtree)
            for key, subtree in params.items()
        }

    def _decode(
        self,
        low_level: jax.Array,
        high_level: jax.Array,
        low_size: jax.Array | None,
        high_size: jax.Array | None,
    ) -> jax.Array:
        _, height, width, _ = low_level.shape
        context = resize_bilinear(
            self.aspp(high_level, high_size),
            (height, width),
            align_corners=True,
            source_size=high_size,
            target_size=low_size,
        )
        y = jnp.concatenate([self.low_level(low_level, low_size), context], axis=-1)
        for conv in self.fuse:
            y = conv(y, low_size)
        return self.classifier(full_precision(y))
