"""ResNet with dilation instead of the last strides (He et al. 2016; Yu and Koltun 2016).

The official SemiOVS and UniMatch trainers (model/backbone/resnet.py there) have three 3x3 convolutions for a stem,
torchvision, timm and Hugging Face one of 7x7. The stride of a bottleneck is that of its 3x3 convolution.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.layers import ConvNorm, backbone_init, strided_size, zero_outside
from semiovs_jax.models.normalization import relu
from semiovs_jax.models.pooling import max_pool
from semiovs_jax.models.remat import remat_block, remat_rest


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; stride and dilation are those of the 3x3 convolution."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(ConvNorm, init=backbone_init, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, width, 1)
        self.conv2 = conv(width, width, 3, stride=stride, dilation=dilation)
        self.conv3 = conv(width, out_channels, 1, relu=False)
        projects = stride != 1 or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, stride=stride, relu=False) if projects else None
        self.stride = stride

    def __call__(self, x: jax.Array, size: jax.Array | None = None) -> jax.Array:
        """Maps x [N, H, W, in] to [N, ceil(H / stride), ceil(W / stride), out]."""
        y = self.conv2(self.conv1(x, size), size)
        y = self.conv3(y, strided_size(size, self.stride))
        return relu(y + (x if self.shortcut is None else self.shortcut(x, size)))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a shortcut; the stride is that of the first.

    Args:
      in_channels: Channels of the input.
      width: Channels of the first convolution.
      out_channels: Channels of the second.
      stride: Of the first convolution.
      dilation: Of the first convolution.
      second_dilation: Of the second convolution, as in timm's dilated networks.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        second_dilation: int = 1,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(ConvNorm, init=backbone_init, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, width, 3, stride=stride, dilation=dilation)
        self.conv2 = conv(width, out_channels, 3, dilation=second_dilation, relu=False)
        projects = stride != 1 or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, stride=stride, relu=False) if projects else None
        self.stride = stride

    def __call__(self, x: jax.Array, size: jax.Array | None = None) -> jax.Array:
        """Maps x [N, H, W, in] to [N, ceil(H / stride), ceil(W / stride), out]."""
        y = self.conv2(self.conv1(x, size), strided_size(size, self.stride))
        return relu(y + (x if self.shortcut is None else self.shortcut(x, size)))


class ResNet(nnx.Module):
    """Feature pyramid of a ResNet.

    Args:
      stage_sizes: Blocks of each stage.
      stem_widths: Channels of the stem's convolutions, the first of which has a stride of 2.
      widths: Channels of the 3x3 convolutions of each stage.
      expansion: Ratio of a stage's output channels to its width.
      dilate: For each stage but the first, whether its stride of 2 becomes a dilation. As in the reference, the first
        block of such a stage still has the dilation of the stage before; of a basic block, its first convolution has.
      block: "bottleneck" or "basic".
      stem_kernel: Side of the stem's kernels.

    Attributes:
      channels: Channels of each stage's output.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        *,
        stem_widths: Sequence[int] = (64, 64, 128),
        widths: Sequence[int] = (64, 128, 256, 512),
        expansion: int = 4,
        dilate: Sequence[bool] = (False, False, True),
        block: str = "bottleneck",
        stem_kernel: int = 3,
        dtype: DTypeLike | None = None,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(ConvNorm, init=backbone_init, dtype=dtype, rngs=rngs)
        inputs = (3, *stem_widths[:-1])
        self.stem = nnx.List(
            conv(c_in, c_out, stem_kernel, stride=2 if i == 0 else 1)
            for i, (c_in, c_out) in enumerate(zip(inputs, stem_widths, strict=True))
        )

        def build(
            in_channels: int, width: int, *, stride: int = 1, dilation: int, last_dilation: int
        ) -> Bottleneck | BasicBlock:
            out_channels = width * expansion
            if block == "basic":
                return BasicBlock(
                    in_channels,
                    width,
                    out_channels,
                    stride=stride,
                    dilation=dilation,
                    second_dilation=last_dilation,
                    dtype=dtype,
                    rngs=rngs,
                )
            return Bottleneck(
                in_channels, width, out_channels, stride=stride, dilation=dilation, dtype=dtype, rngs=rngs
            )

        stages = []
        features, dilation = stem_widths[-1], 1
        for blocks, width, dilated in zip(stage_sizes, widths, (None, *dilate), strict=True):
            previous_dilation = dilation
            dilation *= 2 if dilated else 1
            first = build(
                features, width, stride=2 if dilated is False else 1, dilation=previous_dilation, last_dilation=dilation
            )
            features = width * expansion
            rest = [build(features, width, dilation=dilation, last_dilation=dilation) for _ in range(blocks - 1)]
            stages.append(nnx.List([first, *rest]))
        self.stages = nnx.List(stages)
        self.channels = tuple(width * expansion for width in widths)
        self.remat = remat

    def __call__(self, x: jax.Array, size: jax.Array | None = None) -> tuple[list[jax.Array], list[jax.Array | None]]:
        """Computes the pyramid.

        Args:
          x: [N, H, W, 3], zero outside `size`.
          size: True sizes, int32 [N, 2], or None.

        Returns:
          Each stage's output (strides 4, 8, 16, 16 by default) and its true sizes.
        """
        x, size = remat_rest(ResNet._stem, self.remat)(self, x, size)
        call = remat_block(type(self.stages[0][0]).__call__, self.remat)  # all blocks are of one kind
        features, sizes = [], []
        for stage in self.stages:
            for block in stage:
                x = call(block, x, size)
                size = strided_size(size, block.stride)
            features.append(x)
            sizes.append(size)
        return features, sizes

    def _stem(self, x: jax.Array, size: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        for conv in self.stem:
            x = conv(x, size)
            size = strided_size(size, conv.stride)
        # Zeros outside the true area are equivalent to the -inf of torch's padding: after ReLU no value is negative.
        pooled_size = strided_size(size, 2)
        # A window beyond an even size has read the last pixel inside.
        return zero_outside(max_pool(x), pooled_size), pooled_size
