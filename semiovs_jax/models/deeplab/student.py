"""DeepLabV3+ students on a ResNet, by name. See `models.base.Family`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from data_pipelines.errors import InputError
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.deeplabv3plus import DeepLabV3Plus
from semiovs_jax.models.deeplab.file import DEEPLAB
from semiovs_jax.models.deeplab.params import convert_deeplab, student_state_dict
from semiovs_jax.models.deeplab.resnet_params import load_backbone, read_architecture
from semiovs_jax.weights.keys import Converted, WeightMismatchError

WEIGHTS_KIND = "resnet"
STUDENT_KIND = DEEPLAB.kind
WEIGHTS_SOURCE = (
    "fetch an ImageNet backbone (for resnet50 and resnet101 those that the UniMatch and SemiOVS repositories link to, "
    "resnet50.pth and resnet101.pth; for resnet18, resnet34, resnet50_v1b and resnet101_v1b those of torchvision, timm "
    "or Hugging Face; for resnet_tiny, shapes_resnet is shipped)"
)

# ImageNet weights have either the deep stem of the papers' code or, from everybody else, one convolution of 7x7.
_PLAIN_STEM: dict[str, Any] = {"stem_widths": (64,), "stem_kernel": 7}
_BASIC: dict[str, Any] = {**_PLAIN_STEM, "block": "basic", "expansion": 1}

STUDENTS = {
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet18": Architecture((2, 2, 2, 2), **_BASIC),
    "resnet34": Architecture((3, 4, 6, 3), **_BASIC),
    "resnet50_v1b": Architecture((3, 4, 6, 3), **_PLAIN_STEM),
    "resnet101_v1b": Architecture((3, 4, 23, 3), **_PLAIN_STEM),
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


def build(
    name: str, num_classes: int, *, image_size: int, dtype: DTypeLike | None, remat: str, rngs: nnx.Rngs
) -> DeepLabV3Plus:
    """See `Family`; the network takes images of any size."""
    del image_size
    return STUDENTS[name].build(num_classes, dtype=dtype, remat=remat, rngs=rngs)


def load_pretrained(
    path: str, params: dict[Any, Any], batch_stats: dict[Any, Any]
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """See `Family`; ImageNet weights."""
    try:
        return load_backbone(path, params, batch_stats)
    except WeightMismatchError as error:
        found = _backbone(read_architecture(path))
        if fitting := [name for name, architecture in STUDENTS.items() if _backbone(architecture) == found]:
            raise InputError(
                f"{path}: the backbone of another student; set config.model.backbone to {' or '.join(fitting)}, or "
                "convert the weights of your backbone"
            ) from error
        raise


def state_dict(params: dict[Any, Any], batch_stats: dict[Any, Any]) -> dict[str, np.ndarray]:
    """See `Family`; the names of UniMatch and SemiOVS."""
    return student_state_dict(params, batch_stats)


def convert_student(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """See `Family`."""
    return convert_deeplab(source, name)


def _backbone(architecture: Architecture) -> tuple[Any, ...]:
    """What of an architecture decides the shapes of its backbone."""
    fields = ("stage_sizes", "stem_widths", "stem_kernel", "widths", "expansion", "block")
    return tuple(getattr(architecture, field) for field in fields)
