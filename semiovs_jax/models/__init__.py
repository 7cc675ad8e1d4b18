"""Segmentation students and the towers of open-vocabulary models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.deeplabv3plus import DeepLabV3Plus
from semiovs_jax.models.functional import Functional
from semiovs_jax.models.resnet import ResNet

__all__ = ["ARCHITECTURES", "Architecture", "DeepLabV3Plus", "Functional", "build_student"]


@dataclass(frozen=True)
class Architecture:
    """Depths and widths of a student; the fields are arguments of `ResNet` and `DeepLabV3Plus`."""

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


ARCHITECTURES = {
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
}

# None computes in the input's own type, so that float64 inputs stay float64.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def build_student(config: Mapping[str, Any], num_classes: int, *, rngs: nnx.Rngs) -> DeepLabV3Plus:
    """Builds DeepLabV3+ with fresh weights.

    Args:
      config: `backbone`, a name of ARCHITECTURES; `dtype`, "float32" or "bfloat16" (convolutions only: batch
        statistics, logits and weights stay float32); `remat`, whether to recompute the residual blocks'
        activations in the backward pass.
      num_classes: Channels of the logits.
      rngs: Stream for the initial weights.

    Raises:
      InputError: An unknown backbone or dtype.
    """
    for key, table in (("backbone", ARCHITECTURES), ("dtype", DTYPES)):
        if config[key] not in table:
            raise InputError(f"config.model.{key} is {config[key]!r}; choose one of {', '.join(sorted(table))}")
    architecture = ARCHITECTURES[config["backbone"]]
    return architecture.build(num_classes, dtype=DTYPES[config["dtype"]], remat=config["remat"], rngs=rngs)
