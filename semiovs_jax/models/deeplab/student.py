"""DeepLabV3+ students on a ResNet, by name. See `models.base.Family`."""

from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.deeplabv3plus import DeepLabV3Plus
from semiovs_jax.models.deeplab.params import load_backbone

WEIGHTS_KIND = "resnet"
WEIGHTS_SOURCE = (
    "fetch the ImageNet backbone that the UniMatch and SemiOVS repositories link to (resnet50.pth or resnet101.pth)"
)

STUDENTS = {
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
    return load_backbone(path, params, batch_stats)
