"""CLIP's vision transformer: the names of SemiVL's, OpenAI's and Hugging Face's checkpoints to ours."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.vit import ClipVitConfig
from semiovs_jax.weights.keys import Converted, Rule, convert, target_shapes
from semiovs_jax.weights.rules import attention, linear, norm

SEMIVL_RULES = [
    Rule(r"cls_token", "cls_token"),
    Rule(r"pos_embed", "pos_embed"),
    Rule(r"patch_embed\.projection\.weight", "patch_embed/kernel", "conv"),
    *norm(r"ln0", "pre_norm"),
    *norm(r"layers\.(\d+)\.ln1", r"layers/\1/norm1"),
    *attention(r"layers\.(\d+)\.attn\.attn"),
    *norm(r"layers\.(\d+)\.ln2", r"layers/\1/norm2"),
    *linear(r"layers\.(\d+)\.ffn\.layers\.0\.0", r"layers/\1/mlp/expand"),
    *linear(r"layers\.(\d+)\.ffn\.layers\.1", r"layers/\1/mlp/contract"),
    *norm(r"ln1", "final_norm"),
    Rule(r"proj\.weight", "projection/kernel", "linear"),
]

OPENAI_RULES = [
    Rule(r"visual\.class_embedding", "cls_token"),
    Rule(r"visual\.positional_embedding", "pos_embed"),
    Rule(r"visual\.conv1\.weight", "patch_embed/kernel", "conv"),
    *norm(r"visual\.ln_pre", "pre_norm"),
    *norm(r"visual\.transformer\.resblocks\.(\d+)\.ln_1", r"layers/\1/norm1"),
    *attention(r"visual\.transformer\.resblocks\.(\d+)\.attn"),
    *norm(r"visual\.transformer\.resblocks\.(\d+)\.ln_2", r"layers/\1/norm2"),
    *linear(r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc", r"layers/\1/mlp/expand"),
    *linear(r"visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj", r"layers/\1/mlp/contract"),
    *norm(r"visual\.ln_post", "final_norm"),
    Rule(r"visual\.proj", "projection/kernel"),
]

HUGGINGFACE_RULES = [
    Rule(r"vision_model\.embeddings\.class_embedding", "cls_token"),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "pos_embed"),
    Rule(r"vision_model\.embeddings\.position_ids", None),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "patch_embed/kernel", "conv"),
    *norm(r"vision_model\.pre_layrnorm", "pre_norm"),
    *norm(r"vision_model\.encoder\.layers\.(\d+)\.layer_norm1", r"layers/\1/norm1"),
    *attention(r"vision_model\.encoder\.layers\.(\d+)\.self_attn"),
    *norm(r"vision_model\.encoder\.layers\.(\d+)\.layer_norm2", r"layers/\1/norm2"),
    *linear(r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1", r"layers/\1/mlp/expand"),
    *linear(r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2", r"layers/\1/mlp/contract"),
    *norm(r"vision_model\.post_layernorm", "final_norm"),
    Rule(r"visual_projection\.weight", "projection/kernel", "linear"),
]

_SCHEMES = {"semivl": SEMIVL_RULES, "openai": OPENAI_RULES, "huggingface": HUGGINGFACE_RULES}
_MARKS = {
    "semivl": "patch_embed.projection.weight",
    "openai": "visual.conv1.weight",
    "huggingface": "vision_model.embeddings.patch_embedding.weight",
}


def scheme_of(source: Mapping[str, Any], *, name: str) -> str:
    """Detects the naming scheme of a state dict: "semivl", "openai" or "huggingface".

    Raises:
      InputError: `source` has no patch convolution under any of the three names.
    """
    for scheme, mark in _MARKS.items():
        if mark in source:
            return scheme
    raise InputError(
        f"{name}: no CLIP vision transformer: expected one of {', '.join(_MARKS.values())}; "
        "give a state dict of SemiVL, OpenAI or Hugging Face CLIP with a ViT image tower"
    )


def infer_config(
    source: Mapping[str, np.ndarray],
    *,
    num_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    eps: float,
    activation: str,
    name: str = "weights",
) -> ClipVitConfig:
    """Infers the architecture from the shapes of `source`.

    Args:
      source: State dict of the image tower, in any of the three schemes.
      num_heads: Attention heads; None: one per 64 channels, as in OpenAI's models.
      image_size: (height, width) in pixels of the position table; None if it is square.
      eps: LayerNorm's epsilon.
      activation: "gelu" or "quick_gelu".
      name: The file that `source` comes from, for error messages.

    Raises:
      InputError: Not a vision transformer, or the position table does not fit the image size.
    """
    found = target_shapes(unpacked(source), _SCHEMES[scheme_of(source, name=name)])
    needed = ("patch_embed/kernel", "pos_embed", "projection/kernel", "layers/0/mlp/expand/kernel")
    if missing := [path for path in needed if path not in found]:
        raise InputError(f"{name}: the image tower lacks {', '.join(missing)}; fetch the whole file again")
    patch, _, _, width = found["patch_embed/kernel"]
    num_patches = found["pos_embed"][0] - 1
    if image_size is None:
        image_size = (math.isqrt(num_patches) * patch,) * 2
    config = ClipVitConfig(
        patch_size=patch,
        width=width,
        num_layers=1 + max(int(path.split("/")[1]) for path in found if path.startswith("layers/")),
        num_heads=num_heads or max(1, width // 64),
        mlp_ratio=found["layers/0/mlp/expand/kernel"][1] / width,
        embed_dim=found["projection/kernel"][1],
        image_size=image_size,
        eps=eps,
        activation=activation,
    )
    if math.prod(config.grid) != num_patches:
        raise InputError(
            f"{name}: the position table has {num_patches} patches, expected {math.prod(config.grid)} for images of "
            f"{config.image_size}; give the image size of the training of these weights"
        )
    return config


def unpacked(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits packed query, key and value rows, and removes axes of length one from the tables.

    `in_proj_weight` [3D, D] and `in_proj_bias` [3D] become `{q,k,v}_proj.weight` and `.bias`; SemiVL's
    `pos_embed` [1, T, D], `cls_token` [1, 1, D] and `proj.weight` [E, D, 1, 1] lose their extra axes.
    """
    result: dict[str, np.ndarray] = {}
    for key, value in source.items():
        if match := re.fullmatch(r"(.*)in_proj_(weight|bias)", key):
            for part, rows in zip("qkv", np.split(value, 3), strict=True):
                result[f"{match[1]}{part}_proj.{match[2]}"] = rows
        elif key == "pos_embed":
            result[key] = value[0]
        elif key == "cls_token":
            result[key] = value[0, 0]
        elif key == "proj.weight":
            result[key] = value.reshape(value.shape[:2])
        else:
            result[key] = value
    return result


def convert_visual(source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights") -> Converted:
    """Renames the image tower's tensors to the paths of `ClipVit`.

    Args:
      source: State dict of the image tower alone, in any of the three schemes.
      target: All shapes to fill, by "/" path.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
      InputError: As `scheme_of`.
    """
    rules = _SCHEMES[scheme_of(source, name=name)]
    return convert(unpacked(source), rules, target, name=name)
