"""Depths and widths of a DeepLabV3+ on a ResNet."""

from dataclasses import dataclass

from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.deeplab.deeplabv3plus import DeepLabV3Plus
from semiovs_jax.models.deeplab.resnet import ResNet


@dataclass(frozen=True)
class Architecture:
    """Depths and widths of a DeepLabV3+; the fields are arguments of `ResNet` and `DeepLabV3Plus`."""

    stage_sizes: tuple[int, ...]
    stem_widths: tuple[int, ...] = (64, 64, 128)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    expansion: int = 4
    dilate: tuple[bool, ...] = (False, False, True)
    rates: tuple[int, ...] = (6, 12, 18)
    channels: int = 256
    low_level_channels: int = 48
    block: str = "bottleneck"
    stem_kernel: int = 3

    def build_backbone(self, *, dtype: DTypeLike | None = None, remat: str = "none", rngs: nnx.Rngs) -> ResNet:
        """The ResNet alone, with fresh weights."""
        return ResNet(
            self.stage_sizes,
            stem_widths=self.stem_widths,
            widths=self.widths,
            expansion=self.expansion,
            dilate=self.dilate,
            block=self.block,
            stem_kernel=self.stem_kernel,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )

    def build(
        self, num_classes: int, *, dtype: DTypeLike | None = None, remat: str = "none", rngs: nnx.Rngs
    ) -> DeepLabV3Plus:
        """The student, with fresh weights."""
        return DeepLabV3Plus(
            self.build_backbone(dtype=dtype, remat=remat, rngs=rngs),
            num_classes,
            rates=self.rates,
            channels=self.channels,
            low_level_channels=self.low_level_channels,
            dtype=dtype,
            rngs=rngs,
        )
