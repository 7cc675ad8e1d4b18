"""SemiVL students on CLIP's vision transformer, by name. See `models.base.Family`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from data_pipelines.errors import InputError
from semiovs_jax.models.base import IndependentStudent
from semiovs_jax.models.clip.vit import ClipVitConfig
from semiovs_jax.models.semivl.file import SEMIVL
from semiovs_jax.models.semivl.params import convert_semivl, load_semivl_backbone
from semiovs_jax.models.semivl.semivl import SemiVL, SemiVLConfig
from semiovs_jax.models.semivl.vlg import VlgConfig
from semiovs_jax.weights.keys import Converted

WEIGHTS_KIND = "clip"
STUDENT_KIND = SEMIVL.kind
WEIGHTS_SOURCE = (
    "fetch CLIP's ViT-B/16 (OpenAI's, Hugging Face's, or SemiVL's clip2mmseg_ViT16_clip_backbone.pth, which is of kind "
    "clip_visual)"
)

STUDENTS = {
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


def build(
    name: str, num_classes: int, *, image_size: int, dtype: DTypeLike | None, remat: str, rngs: nnx.Rngs
) -> IndependentStudent:
    """See `Family`; the position table covers a crop of `image_size`."""
    return SemiVL(STUDENTS[name], num_classes, image_size=image_size, dtype=dtype, remat=remat, rngs=rngs)


def load_pretrained(
    path: str, params: dict[Any, Any], batch_stats: dict[Any, Any]
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """See `Family`; CLIP's image tower, a file of kind "clip" or "clip_visual". The text embeddings stay."""
    return load_semivl_backbone(path, params), batch_stats


def state_dict(params: dict[Any, Any], batch_stats: dict[Any, Any]) -> dict[str, np.ndarray]:
    """See `Family`. It always raises: published students have packed tensors, which nothing here writes."""
    raise InputError(
        "SemiVL's students cannot be exported with the names of the PyTorch code; use --format=stablehlo, or read the "
        "checkpoint (Orbax)"
    )


def convert_student(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """See `Family`."""
    return convert_semivl(source, name)
