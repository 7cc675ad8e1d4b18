r"""CLIP's ConvNeXt image tower: open_clip's names, which SED keeps, to ours.

open_clip has timm's network as `visual.trunk` and its own head as `visual.head`. timm renamed its layers over time, and
ConvNeXt's authors use other names (timm, `convnext.py`, `checkpoint_filter_fn`):

    authors                        timm
    downsample_layers.0.{0,1}      stem.{0,1}
    downsample_layers.i.{0,1}      stages.i.downsample.{0,1}
    stages.i.j.{dwconv,pwconv1}    stages.i.blocks.j.{conv_dw,mlp.fc1}
    norm                           head.norm; norm_pre if normalized before pooling, which is the same per pixel

A state dict may contain a whole model. The name of the first convolution gives the tower's prefix (SED's is
`sem_seg_head.predictor.clip_model.`); names outside the tower are dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNextConfig
from semiovs_jax.weights.keys import Converted, Rule, convert, prefixes, strip_prefix, target_shapes
from semiovs_jax.weights.rules import conv, convnext_block, linear, norm

# Names after the prefix that `find_prefix` finds.
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

_FIRST_CONV = r"visual\.trunk\.(?:stem|downsample_layers\.0)\.0\.weight"


def find_prefix(source: Mapping[str, Any]) -> str | None:
    """The prefix before `visual.` in the names of a ConvNeXt tower; None unless `source` has exactly one tower."""
    found = prefixes(source, _FIRST_CONV)
    return found[0] if len(found) == 1 else None


def _tower(source: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The prefix of the tower's names, and its tensors by the names of RULES."""
    if (prefix := find_prefix(source)) is None:
        raise InputError(
            f"{name}: no ConvNeXt image tower: expected `visual.trunk.stem.0.weight` exactly once; "
            "give a state dict of SED or of an open_clip ConvNeXt model"
        )
    tower = {key: value for key, value in strip_prefix(source, prefix).items() if key.startswith("visual.")}
    return prefix, tower


def infer_convnext_config(source: Mapping[str, Any], *, name: str = "weights") -> ClipConvNextConfig:
    """Infers the architecture from the shapes of `source`.

    Args:
      source: State dict of an image tower or of a whole model; anything with a `shape` by published name.
      name: The file that `source` comes from, for error messages.

    Raises:
      InputError: `source` has no ConvNeXt tower, lacks a tensor that determines a width, or is `convnext_xxlarge`,
        whose normalizations have another epsilon.
    """
    shapes = target_shapes(_tower(source, name)[1], RULES)
    blocks = [(int(i), int(j)) for i, j in re.findall(r"stages/(\d+)/blocks/(\d+)/norm/scale", "\n".join(shapes))]
    stages = range(1 + max((stage for stage, _ in blocks), default=-1))
    needed = [*(f"stages/{i}/blocks/0/norm/scale" for i in stages), "head/projection/kernel"]
    if not stages or (missing := [path for path in needed if path not in shapes]):
        lacking = ", ".join(missing) if stages else "its blocks"
        raise InputError(f"{name}: the image tower lacks {lacking}; fetch the whole file again")
    config = ClipConvNextConfig(
        widths=tuple(shapes[f"stages/{i}/blocks/0/norm/scale"][0] for i in stages),
        depths=tuple(1 + max(block for stage, block in blocks if stage == i) for i in stages),
        embed_dim=shapes["head/projection/kernel"][1],
        head_width=shapes.get("head/hidden/kernel", (0, 0))[1],
    )
    if config.depths == (3, 4, 30, 3):
        raise InputError(
            f"{name}: holds convnext_xxlarge, which normalizes with epsilon 1e-5, expected 1e-6; "
            "give a base or large ConvNeXt CLIP"
        )
    return config


def convert_convnext(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights"
) -> Converted:
    """Renames the image tower's tensors to the paths of `ClipConvNext`.

    Args:
      source: State dict of an image tower or of a whole model, by timm's names or those of ConvNeXt's authors.
      target: All shapes to fill, by "/" path.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
      InputError: `source` has no ConvNeXt tower.
    """
    prefix, tower = _tower(source, name)
    values = convert(tower, RULES, target, name=name).values
    return Converted(values, tuple(key for key in source if not key.startswith(f"{prefix}visual.")))
