"""SemiVL's students to our parameters, and the CLIP image tower from which their training starts.

A student's state dict has the backbone below `backbone.`, the head below `decode_head.`, and below `clip_encoder.` the
frozen tower that makes its dense CLIP labels. It does not have the embedded class names.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.file import CLIP_VISUAL, load_visual
from semiovs_jax.models.clip.vit import MASKCLIP, ClipVitConfig, resize_positions
from semiovs_jax.models.clip.vit_params import SEMIVL_RULES, convert_visual, infer_config, scheme_of, unpacked
from semiovs_jax.models.functional import PyTree
from semiovs_jax.models.semivl.file import SEMIVL, parameter_shapes
from semiovs_jax.models.semivl.semivl import SemiVLConfig
from semiovs_jax.models.semivl.vlg import VlgConfig
from semiovs_jax.weights.keys import (
    Converted,
    Converter,
    Rule,
    below,
    convert,
    fill,
    flatten,
    match_exactly,
    strip_prefix,
    target_shapes,
    unflatten,
)
from semiovs_jax.weights.rules import attention, conv, conv_transpose, linear, norm

MAX_UPS = 4

_BACKBONE, _HEAD, _LABEL_MAKER = "backbone.", "decode_head.", "clip_encoder."


def _up(source: str, target: str) -> list[Rule]:
    return [
        *conv_transpose(rf"{source}\.up", f"{target}/up"),
        Rule(rf"{source}\.conv\.0\.weight", f"{target}/conv1", "conv"),
        *norm(rf"{source}\.conv\.1", f"{target}/norm1"),
        Rule(rf"{source}\.conv\.3\.weight", f"{target}/conv2", "conv"),
        *norm(rf"{source}\.conv\.4", f"{target}/norm2"),
    ]


# Names after the head's prefix.
HEAD_RULES = [
    *conv(r"conv1", "embed"),
    Rule(r"aspp\.aspp_convs\.(\d+)\.(?:0|gap\.1)\.weight", r"aspp/branches/\1/kernel", "conv"),
    *norm(r"aspp\.aspp_convs\.(\d+)\.(?:1|gap\.2)", r"aspp/norms/\1"),
    Rule(r"aspp\.project\.0\.weight", "aspp/project", "conv"),
    *norm(r"aspp\.project\.1", "aspp/project_norm"),
    *linear(r"text_proj\.0", "text"),
    *norm(r"layers\.(\d+)\.transformer\.ln([12])", r"layers/\1/norm\2"),
    *attention(r"layers\.(\d+)\.transformer\.attn\.attn"),
    *linear(r"layers\.(\d+)\.transformer\.ffn\.layers\.0\.0", r"layers/\1/mlp/expand"),
    *linear(r"layers\.(\d+)\.transformer\.ffn\.layers\.1", r"layers/\1/mlp/contract"),
    *conv(r"skip_proj\.(\d+)\.0", r"skips/\1"),
    *(rule for i in range(MAX_UPS) for rule in _up(f"up{i + 1}", f"ups/{i}")),
    *conv(r"head", "classifier"),
]

STUDENT_RULES = [
    *below(SEMIVL_RULES, _BACKBONE, "backbone"),
    *below(HEAD_RULES, _HEAD, "head"),
    Rule(r"clip_encoder\..*", None),
]


def infer_vlg_config(
    source: Mapping[str, np.ndarray],
    *,
    num_heads: int = 4,
    pool: int = 4,
    rates: Sequence[int] = (6, 12, 18),
    name: str = "weights",
) -> VlgConfig:
    """Infers the head's architecture from the shapes of `source`.

    Args:
      source: State dict of a head alone.
      num_heads: Heads of the semantic layers. Shapes determine neither them nor `pool` and `rates`.
      pool: The reference's `pool_size`.
      rates: Dilations of the spatial pyramid.
      name: The file that `source` comes from, for error messages.

    Raises:
      InputError: `source` lacks a tensor that determines a width.
    """
    shapes = target_shapes(unpacked(source), HEAD_RULES)
    ups = sorted(path for path in shapes if path.startswith("ups/") and path.endswith("/conv1"))
    skips = [f"skips/{i}/kernel" for i in range(len(ups))]
    layers = {path.split("/")[1] for path in shapes if path.startswith("layers/")}
    needed = ["embed/kernel", "text/kernel", *(ups or ["ups/0/conv1"]), *skips]
    if missing := [path for path in needed if path not in shapes]:
        raise InputError(f"{name}: the head lacks {', '.join(missing)}; give the state dict of a SemiVL student")
    return VlgConfig(
        channels=shapes["embed/kernel"][3],
        text_channels=shapes["text/kernel"][1],
        num_layers=len(layers),
        num_heads=num_heads,
        pool=pool,
        skip_channels=tuple(shapes[path][3] for path in skips),
        up_channels=tuple(shapes[path][3] for path in ups),
        rates=tuple(rates),
        kernel_size=shapes["embed/kernel"][0],
    )


def infer_semivl(
    source: Mapping[str, np.ndarray],
    *,
    num_heads: int | None = None,
    out_layers: Sequence[int] = (0, 4),
    name: str = "weights",
) -> SemiVLConfig:
    """Infers a student's architecture from the shapes of `source`.

    Args:
      source: State dict of a student.
      num_heads: Attention heads of the backbone; None: one per 64 channels, as in OpenAI's models.
      out_layers: Blocks whose value paths are inputs of the head; shapes do not determine them. The reference's
        `out_indices` without the last, which is the dense embedding.
      name: The file that `source` comes from, for error messages.

    Returns:
      The architecture. The backbone's image size is the square of its position table: the side of the training crop,
      rounded up to whole patches. What shapes do not determine of the head has the published values.

    Raises:
      InputError: Not a student of SemiVL with a vision transformer.
    """
    return SemiVLConfig(
        visual=infer_config(strip_prefix(source, _BACKBONE), num_heads=num_heads, **MASKCLIP, name=name),
        out_layers=tuple(out_layers),
        head=infer_vlg_config(strip_prefix(source, _HEAD), name=name),
    )


def convert_vlg_head(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights"
) -> Converted:
    """Renames the head's tensors to the paths of `VlgHead`.

    Args:
      source: State dict of a head alone.
      target: All shapes to fill, by "/" path.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
    """
    return convert(unpacked(source), HEAD_RULES, target, name=name)


def convert_semivl(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Converts a student: `--kind=semivl`.

    Args:
      source: State dict of a student with the published settings (see `infer_semivl`), with or without its label maker.
      name: The file that `source` comes from, for error messages.

    Returns:
      The parameters, the dropped keys (the label maker), and the `SemiVLConfig` as metadata. The parameters do not
      depend on the number of classes.

    Raises:
      InputError: Another network, or an extra or missing tensor or one of a wrong shape.
    """
    config = infer_semivl(source, name=name)
    target = flatten(parameter_shapes(config))
    converted = convert(unpacked_student(source), STUDENT_RULES, target, name=name)
    return dataclasses.replace(converted, metadata=SEMIVL.metadata(config))


def convert_semivl_student(
    source: Mapping[str, np.ndarray], params: PyTree, batch_stats: PyTree, *, name: str = "weights"
) -> tuple[PyTree, PyTree]:
    """Parameters of a student from a published state dict.

    Args:
      source: State dict of a student, with or without its label maker.
      params: The student's parameters, for paths, shapes and dtypes.
      batch_stats: The student's text embedding, which is not in `source`; returned unchanged.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: An extra or missing tensor or one of a wrong shape.
    """
    values = convert(unpacked_student(source), STUDENT_RULES, flatten(params), name=name).values
    return fill(params, values), batch_stats


def convert_label_maker(
    source: Mapping[str, np.ndarray], *, num_heads: int | None = None, name: str = "weights"
) -> tuple[ClipVitConfig, PyTree]:
    """Converts the frozen tower that makes the dense CLIP labels of a student's training.

    Args:
      source: State dict of a student.
      num_heads: Attention heads; None: one per 64 channels.
      name: The file that `source` comes from, for error messages.

    Returns:
      The architecture, and the parameters of its `ClipVit`.

    Raises:
      InputError: `source` has no label maker, or one that is not exactly a vision transformer.
    """
    config, values = _convert_tower(strip_prefix(source, _LABEL_MAKER), num_heads=num_heads, name=name)
    return config, unflatten(values)


def convert_clip_visual(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Converts SemiVL's `clip2mmseg_ViT16_clip_backbone.pth`: `--kind=clip_visual`.

    Args:
      source: State dict of CLIP's image tower with SemiVL's names, with or without the prefix `backbone.`.
      name: The file that `source` comes from, for error messages.

    Returns:
      Values below `visual/`, and the architecture as metadata: MaskCLIP's epsilon and activation, 64 channels per head.

    Raises:
      InputError: Another network, or an extra or missing tensor or one of a wrong shape.
    """
    tower = {key.removeprefix(_BACKBONE): value for key, value in source.items()}
    if (scheme := scheme_of(tower, name=name)) != "semivl":
        raise InputError(f"{name}: has the names of {scheme}'s CLIP, expected SemiVL's; convert it with --kind=clip")
    config, values = _convert_tower(tower, num_heads=None, name=name)
    return Converted(flatten({"visual": values}), (), CLIP_VISUAL.metadata(config))


def load_semivl_backbone(path: str, params: PyTree) -> PyTree:
    """Replaces the backbone of a freshly initialized student by CLIP's image tower.

    The position table is resized to the student's grid, as the reference resizes it. The student's epsilon and
    activation apply, not those of the tower's training.

    Args:
      path: File of kind "clip_visual" or "clip", or name of shipped weights.
      params: The student's parameters. Everything beside `backbone` is returned unchanged.

    Raises:
      InputError: The file is missing, damaged or of another kind, or its tensors are not exactly those of the
        student's backbone.
    """
    config, visual = load_visual(path)
    values, fresh = flatten(visual), flatten(params["backbone"])
    side = math.isqrt(fresh["pos_embed"].shape[0] - 1)
    values["pos_embed"] = np.asarray(resize_positions(jnp.asarray(values["pos_embed"]), config.grid, (side, side)))
    return {**params, "backbone": fill(params["backbone"], match_exactly(values, fresh, name=path))}


def unpacked_student(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A student's state dict with `clip.vit_params.unpacked` applied to backbone and head, for STUDENT_RULES."""
    result = {key: value for key, value in source.items() if not key.startswith((_BACKBONE, _HEAD))}
    for prefix in (_BACKBONE, _HEAD):
        result |= {prefix + key: value for key, value in unpacked(strip_prefix(source, prefix)).items()}
    return result


def _convert_tower(
    source: Mapping[str, np.ndarray], *, num_heads: int | None, name: str
) -> tuple[ClipVitConfig, dict[str, np.ndarray]]:
    config = infer_config(source, num_heads=num_heads, **MASKCLIP, name=name)
    return config, convert_visual(source, CLIP_VISUAL.shapes(config)["visual"], name=name).values


KINDS: dict[str, Converter] = {CLIP_VISUAL.kind: convert_clip_visual, SEMIVL.kind: convert_semivl}
