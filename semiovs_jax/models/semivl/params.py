"""SemiVL's students to our parameters, and the CLIP image tower that their training starts from.

A student's state dict holds the backbone below `backbone.`, the head below `decode_head.`, and the frozen tower of its
dense CLIP labels below `clip_encoder.`. The embedded class names are not in it.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.file import load_visual
from semiovs_jax.models.clip.vit import MASKCLIP, ClipVit, ClipVitConfig, resize_positions
from semiovs_jax.models.clip.vit_params import SEMIVL_RULES, convert_visual, infer_config, scheme_of, unpacked
from semiovs_jax.models.functional import PyTree
from semiovs_jax.models.semivl.semivl import SemiVLConfig
from semiovs_jax.models.semivl.vlg import VlgConfig
from semiovs_jax.weights.keys import Converted, Rule, below, convert, flatten, target_shapes, unflatten
from semiovs_jax.weights.parts import flatten_parts, part_shapes
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


# Names behind the head's prefix.
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
    """The head whose weights `source` holds, read off its shapes.

    Args:
      source: State dict of a head alone.
      num_heads: Heads of the semantic layers, which shapes do not tell.
      pool: The reference's `pool_size`, likewise.
      rates: Dilations of the spatial pyramid, likewise.
      name: What `source` is, for error messages.

    Raises:
      InputError: It lacks what tells the widths.
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
    """The student whose weights `source` holds, read off its shapes.

    Args:
      source: State dict of a student.
      num_heads: Attention heads of the backbone; None for OpenAI's rule, one per 64 channels.
      out_layers: Blocks whose value paths the head sees, which shapes do not tell: the reference's `out_indices`
        without the last, which stands for the dense embedding.
      name: What `source` is, for error messages.

    Returns:
      The architecture; the backbone's image size is the square that its position table covers. What shapes do not
      tell of the head is the published.

    Raises:
      InputError: Not a student of SemiVL with a vision transformer.
    """
    return SemiVLConfig(
        visual=infer_config(_behind(source, _BACKBONE), num_heads=num_heads, **MASKCLIP, name=name),
        out_layers=tuple(out_layers),
        head=infer_vlg_config(_behind(source, _HEAD), name=name),
    )


def convert_vlg_head(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights"
) -> Converted:
    """Renames the head's tensors to the paths of `VlgHead`.

    Args:
      source: State dict of a head alone.
      target: What `keys.convert` fills: shapes by "/" path.
      name: What `source` is, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
    """
    return convert(unpacked(source), HEAD_RULES, target, name=name)


def convert_semivl_student(
    source: Mapping[str, np.ndarray], params: PyTree, batch_stats: PyTree, *, name: str = "weights"
) -> tuple[PyTree, PyTree]:
    """Parameters of a student from a published state dict.

    Args:
      source: State dict of a student, with or without its label maker.
      params: The student's parameters, for names and shapes.
      batch_stats: Its text embedding, which `source` does not hold: returned as it is.
      name: What `source` is, for error messages.

    Raises:
      WeightMismatchError: A tensor too many, too few or of a wrong shape.
    """
    return _filled(
        convert(unpacked_student(source), STUDENT_RULES, flatten(params), name=name).values, params
    ), batch_stats


def convert_label_maker(
    source: Mapping[str, np.ndarray], *, num_heads: int | None = None, name: str = "weights"
) -> tuple[ClipVitConfig, PyTree]:
    """The frozen tower that makes the dense CLIP labels of a student's training.

    Args:
      source: State dict of a student.
      num_heads: Attention heads; None for OpenAI's rule.
      name: What `source` is, for error messages.

    Returns:
      The architecture, and the parameters of its `ClipVit`.

    Raises:
      InputError: There is none in `source`, or it is not exactly a vision transformer.
    """
    config, values = _convert_tower(_behind(source, _LABEL_MAKER), num_heads=num_heads, name=name)
    return config, unflatten(values)


def convert_clip_visual(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Renames SemiVL's `clip2mmseg_ViT16_clip_backbone.pth`: the converter of `--kind=clip_visual`.

    Args:
      source: State dict of CLIP's image tower under SemiVL's names, with or without `backbone.` before them.
      name: The file it comes from, for error messages.

    Returns:
      Values below `visual/`, and the architecture as metadata: MaskCLIP's epsilon and activation, 64 channels a
      head.

    Raises:
      InputError: Another network, or a tensor too many, too few or of a wrong shape.
    """
    tower = {key.removeprefix(_BACKBONE): value for key, value in source.items()}
    if (scheme := scheme_of(tower, name=name)) != "semivl":
        raise InputError(f"{name}: has the names of {scheme}'s CLIP; convert it with --kind=clip")
    config, values = _convert_tower(tower, num_heads=None, name=name)
    return Converted(flatten_parts({"visual": values}), (), {"config": json.dumps(dataclasses.asdict(config))})


def load_semivl_backbone(path: str, params: PyTree) -> PyTree:
    """Replaces the backbone of a freshly initialized student by CLIP's image tower.

    The position table is resized to the student's grid as the reference does when it loads. Epsilon and activation
    stay the student's, whatever the tower was trained with.

    Args:
      path: File of kind "clip_visual" or "clip", or name of shipped weights.
      params: The student's parameters; everything beside `backbone` is returned as it is.

    Raises:
      InputError: The file is missing, damaged or of another kind, or its tensors are not exactly those of the
        student's backbone.
    """
    config, visual = load_visual(path)
    values, fresh = flatten(visual), flatten(params["backbone"])
    side = math.isqrt(fresh["pos_embed"].shape[0] - 1)
    values["pos_embed"] = np.asarray(resize_positions(jnp.asarray(values["pos_embed"]), config.grid, (side, side)))
    backbone = convert(values, [Rule(r"(.*)", r"\1")], fresh, name=path).values
    return {**params, "backbone": _filled(backbone, params["backbone"])}


def unpacked_student(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A student's state dict with each of its parts as `clip.unpacked` gives it, under the names of STUDENT_RULES."""
    result = dict(source)
    for prefix in (_BACKBONE, _HEAD, _LABEL_MAKER):
        result = {key: value for key, value in result.items() if not key.startswith(prefix)}
        result |= {prefix + key: value for key, value in unpacked(_behind(source, prefix)).items()}
    return result


def _behind(source: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}


def _convert_tower(
    source: Mapping[str, np.ndarray], *, num_heads: int | None, name: str
) -> tuple[ClipVitConfig, dict[str, np.ndarray]]:
    config = infer_config(source, num_heads=num_heads, **MASKCLIP, name=name)
    target = part_shapes({"visual": lambda: ClipVit(config, rngs=nnx.Rngs(0))})["visual"]
    return config, convert_visual(source, target, name=name).values


def _filled(values: Mapping[str, Any], tree: PyTree) -> PyTree:
    """`tree` with its leaves replaced by `values`."""
    return unflatten({path: jnp.asarray(values[path], leaf.dtype) for path, leaf in flatten(tree).items()})
