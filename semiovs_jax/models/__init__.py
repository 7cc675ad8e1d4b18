"""Segmentation students and the towers of open-vocabulary models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip_vit import ClipVitConfig
from semiovs_jax.models.deeplabv3plus import DeepLabV3Plus
from semiovs_jax.models.functional import Functional
from semiovs_jax.models.resnet import ResNet
from semiovs_jax.models.semivl import SemiVL, SemiVLConfig
from semiovs_jax.models.student import Student
from semiovs_jax.models.vlg import VlgConfig

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DeepLabV3Plus",
    "Functional",
    "SemiVL",
    "SemiVLConfig",
    "Student",
    "build_student",
]


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

    def build_backbone(self, *, dtype: jnp.dtype | None = None, remat: bool = False, rngs: nnx.Rngs) -> ResNet:
        """The ResNet alone, with fresh weights."""
        return ResNet(
            self.stage_sizes,
            stem_widths=self.stem_widths,
            widths=self.widths,
            expansion=self.expansion,
            dilate=self.dilate,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )

    def build(
        self, num_classes: int, *, dtype: jnp.dtype | None = None, remat: bool = False, rngs: nnx.Rngs
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


ARCHITECTURES: dict[str, Architecture | SemiVLConfig] = {
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    # For two CPU cores and crops of 65 px: their last feature map has 5 x 5 positions, and the rates fit into it.
    "resnet_tiny": Architecture(
        (1, 1, 1, 1),
        stem_widths=(16, 16, 32),
        widths=(16, 24, 32, 48),
        rates=(1, 2, 3),
        channels=32,
        low_level_channels=16,
    ),
    "clip_vit_b16": SemiVLConfig(),
    # The tower of the shipped CLIP "shapes_clip". A crop of 64 px has 8 x 8 patches, and the rates fit into them.
    "clip_vit_shapes": SemiVLConfig(
        ClipVitConfig(patch_size=8, width=64, num_layers=4, num_heads=2, embed_dim=64),
        out_layers=(0, 1),
        head=VlgConfig(
            channels=32,
            text_channels=32,
            num_layers=1,
            pool=2,
            skip_channels=(8, 4),
            up_channels=(16, 8),
            rates=(1, 2, 3),
            kernel_size=3,
        ),
    ),
}

# None computes in the input's own type, so that float64 inputs stay float64.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def build_student(config: Mapping[str, Any], num_classes: int, *, image_size: int, rngs: nnx.Rngs) -> Student:
    """Builds DeepLabV3+ or SemiVL with fresh weights.

    Args:
      config: `backbone`, a name of ARCHITECTURES; `dtype`, "float32" or "bfloat16" (of convolutions and
        transformers: batch statistics, logits and weights stay float32); `remat`, whether to recompute the
        activations of residual or transformer blocks in the backward pass.
      num_classes: Channels of the logits.
      image_size: Side of the training crop, which decides SemiVL's position table; DeepLabV3+ has none.
      rngs: Stream for the initial weights.

    Raises:
      InputError: An unknown backbone or dtype.
    """
    for key, table in (("backbone", ARCHITECTURES), ("dtype", DTYPES)):
        if config[key] not in table:
            raise InputError(f"config.model.{key} is {config[key]!r}; choose one of {', '.join(sorted(table))}")
    architecture = ARCHITECTURES[config["backbone"]]
    dtype, remat = DTYPES[config["dtype"]], config["remat"]
    if isinstance(architecture, SemiVLConfig):
        return SemiVL(architecture, num_classes, image_size=image_size, dtype=dtype, remat=remat, rngs=rngs)
    return architecture.build(num_classes, dtype=dtype, remat=remat, rngs=rngs)
