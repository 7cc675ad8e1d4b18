r"""CLIP's ConvNeXt image tower: the names of open_clip, which SED keeps, to ours.

open_clip holds the network of timm as `visual.trunk` and its own head as `visual.head`. timm's names changed over
time, and ConvNeXt's authors have their own (timm, `convnext.py`, `checkpoint_filter_fn`):

    authors                        timm
    downsample_layers.0.{0,1}      stem.{0,1}
    downsample_layers.i.{0,1}      stages.i.downsample.{0,1}
    stages.i.j.{dwconv,pwconv1}    stages.i.blocks.j.{conv_dw,mlp.fc1}
    norm                           head.norm; norm_pre if normalized before pooling, which is the same per pixel

A state dict may be that of a whole model: the tower is found by its first convolution, whatever prefix stands
before it (SED's is `sem_seg_head.predictor.clip_model.`), and the rest is dropped by name.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNextConfig
from semiovs_jax.weights.keys import Converted, Rule, convert, target_shapes
from semiovs_jax.weights.rules import conv, convnext_block, linear, norm

# Names behind the prefix that `find_prefix` finds.
RULES = [
    *conv(r"visual\.trunk\.(?:stem|downsample_layers\.0)\.0", "stem"),
    *norm(r"visual\.trunk\.(?:stem|downsample_layers\.0)\.1", "stem_norm"),
    *(
        rule
        for names in (r"stages\.(\d+)\.downsample", r"downsample_layers\.(\d+)")
        for rule in (
            *norm(rf"visual\.trunk\.{names}\.0", r"stages/\1/downsample/norm"),
            *conv(rf"visual\.trunk\.{names}\.1", r"stages/\1/downsample/conv"),
        )
    ),
    *convnext_block(r"visual\.trunk\.stages\.(\d+)\.(?:blocks\.)?(\d+)", r"stages/\1/blocks/\2"),
    *norm(r"visual\.trunk\.(?:head\.norm|norm_pre|norm)", "head/norm"),
    *linear(r"visual\.head\.mlp\.fc1", "head/hidden"),
    Rule(r"visual\.head\.(?:proj|mlp\.fc2)\.weight", "head/projection/kernel", "linear"),
]

_MARK = re.compile(r"(.*\.|)visual\.trunk\.(?:stem|downsample_layers\.0)\.0\.weight")


def find_prefix(source: Mapping[str, Any]) -> str | None:
    """What stands before `visual.` in the names of a ConvNeXt tower; None if `source` has not exactly one."""
    found = [match[1] for key in source if (match := _MARK.fullmatch(key))]
    return found[0] if len(found) == 1 else None


def _inside(source: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The prefix, and the tower's tensors by name without it."""
    if (prefix := find_prefix(source)) is None:
        raise InputError(
            f"{name}: no ConvNeXt image tower: `visual.trunk.stem.0.weight` must be in it, once; "
            "give a state dict of SED or of an open_clip ConvNeXt model"
        )
    start = f"{prefix}visual."
    return prefix, {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(start)}


def infer_convnext_config(source: Mapping[str, Any], *, name: str = "weights") -> ClipConvNextConfig:
    """The architecture whose weights `source` holds, read off its shapes.

    Args:
      source: State dict of an image tower or of a whole model; anything with a `shape` by published name.
      name: What `source` is, for error messages.

    Raises:
      InputError: There is no ConvNeXt tower in `source`, or it lacks what tells its widths, or it is
        `convnext_xxlarge`, whose normalizations have another epsilon.
    """
    shapes = target_shapes(_inside(source, name)[1], RULES)
    blocks = [(int(i), int(j)) for i, j in re.findall(r"stages/(\d+)/blocks/(\d+)/norm/scale", "\n".join(shapes))]
    stages = range(1 + max((stage for stage, _ in blocks), default=-1))
    needed = [*(f"stages/{i}/blocks/0/norm/scale" for i in stages), "head/projection/kernel"]
    if not stages or (missing := [path for path in needed if path not in shapes]):
        raise InputError(f"{name}: the image tower lacks {', '.join(missing) if stages else 'its blocks'}")
    config = ClipConvNextConfig(
        widths=tuple(shapes[f"stages/{i}/blocks/0/norm/scale"][0] for i in stages),
        depths=tuple(1 + max(block for stage, block in blocks if stage == i) for i in stages),
        embed_dim=shapes["head/projection/kernel"][1],
        head_width=shapes.get("head/hidden/kernel", (0, 0))[1],
    )
    if config.depths == (3, 4, 30, 3):
        raise InputError(
            f"{name}: convnext_xxlarge normalizes with epsilon 1e-5, this tower with 1e-6; "
            "use a base or large ConvNeXt CLIP"
        )
    return config


def convert_convnext(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights"
) -> Converted:
    """Renames the image tower's tensors to the paths of `ClipConvNext`.

    Args:
      source: State dict of an image tower or of a whole model, by timm's names or those of ConvNeXt's authors.
      target: What `keys.convert` fills: shapes by "/" path.
      name: What `source` is, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
      InputError: There is no ConvNeXt tower in `source`.
    """
    prefix, inside = _inside(source, name)
    values = convert(inside, RULES, target, name=name).values
    return Converted(values, tuple(key for key in source if key.removeprefix(prefix) not in inside))
