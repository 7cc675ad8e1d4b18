"""Segmentation students and the towers of open-vocabulary models."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.vit import ClipVitConfig
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.deeplabv3plus import DeepLabV3Plus
from semiovs_jax.models.functional import Functional
from semiovs_jax.models.layers import DTYPES
from semiovs_jax.models.semivl.semivl import SemiVL, SemiVLConfig
from semiovs_jax.models.semivl.vlg import VlgConfig
from semiovs_jax.models.student import Student

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
