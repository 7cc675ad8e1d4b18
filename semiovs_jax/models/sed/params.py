"""SED's published models: the names of their state dicts to ours.

`sed_model_base.pth` and `sed_model_large.pth` have open_clip's ConvNeXt CLIP below
`sem_seg_head.predictor.clip_model.` and the aggregator below `sem_seg_head.predictor.transformer.`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.params import convnext_clip_rules, infer_convnext_clip
from semiovs_jax.models.clip.vit_params import unpacked
from semiovs_jax.models.sed.aggregator import SedConfig
from semiovs_jax.models.sed.file import SED, SedWeightsConfig, parameter_shapes
from semiovs_jax.weights.keys import (
    Converted,
    Converter,
    Rule,
    below,
    convert,
    flatten,
    prefixes,
    strip_prefix,
    target_shapes,
)
from semiovs_jax.weights.rules import conv, conv_transpose, convnext_block, linear, norm

_NUM_DECODERS = 3


def _decoder(source: str, target: str) -> list[Rule]:
    rules = [
        *convnext_block(rf"{source}\.cnext", f"{target}/block"),
        *norm(rf"{source}\.attention\.norm([12])", rf"{target}/attention/norm\1"),
        *linear(rf"{source}\.attention\.MLP\.0", f"{target}/attention/mlp/expand"),
        *linear(rf"{source}\.attention\.MLP\.2", f"{target}/attention/mlp/contract"),
        *conv_transpose(rf"{source}\.up", f"{target}/up"),
    ]
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        rules += linear(rf"{source}\.attention\.attention\.{theirs}", f"{target}/attention/{ours}")
    for i, (theirs_conv, theirs_norm) in enumerate(((0, 1), (3, 4)), start=1):
        rules.append(Rule(rf"{source}\.conv\.double_conv\.{theirs_conv}\.weight", f"{target}/conv{i}", "conv"))
        rules += norm(rf"{source}\.conv\.double_conv\.{theirs_norm}", f"{target}/norm{i}")
    return rules


# Names after the aggregator's prefix.
AGGREGATOR_RULES = [
    *conv(r"conv1", "embed"),
    *conv(r"decoder_guidance_projection\.(\d+)\.0", r"image_guidance/\1"),
    *conv_transpose(r"decoder_corr_guidance_projection\.(\d+)\.0", r"correlation_guidance/\1"),
    *(rule for i in range(_NUM_DECODERS) for rule in _decoder(f"decoder{i + 1}", f"decoders/{i}")),
    *conv(r"head(\d)", r"heads/\1"),
    *conv(r"head", f"heads/{_NUM_DECODERS}"),
]

# Tensors of training beside the three parts: the loss, the images' statistics, embedded vocabularies.
_BESIDE_RULES = [
    Rule(r"(?:.*\.)?criterion\..*", None),
    Rule(r"(?:clip_)?pixel_(?:mean|std)", None),
    Rule(r"sem_seg_head\.predictor\.text_features(?:_test)?", None),
]

_MARK = "decoder_corr_guidance_projection.0.0.weight"


def _find_prefix(source: Mapping[str, Any], name: str) -> str:
    found = prefixes(source, re.escape(_MARK))
    if len(found) != 1:
        raise InputError(
            f"{name}: no SED aggregator: expected `{_MARK}` exactly once; "
            "give sed_model_base.pth or sed_model_large.pth, the models with a ConvNeXt"
        )
    return found[0]


def infer_sed_config(source: Mapping[str, Any], *, num_heads: int = 4, name: str = "weights") -> SedConfig:
    """Infers the aggregator's architecture from the shapes of `source`.

    Args:
      source: State dict of an aggregator or of a whole SED; anything with a `shape` by published name.
      num_heads: Heads of the class attention; shapes do not determine it.
      name: The file that `source` comes from, for error messages.

    Raises:
      InputError: `source` has no aggregator, or lacks a tensor that determines a width.
    """
    shapes = target_shapes(strip_prefix(source, _find_prefix(source, name)), AGGREGATOR_RULES)
    stages = range(_NUM_DECODERS)
    needed = ["embed/kernel"]
    for i in stages:
        needed += [f"decoders/{i}/conv2", f"decoders/{i}/block/depthwise/kernel", f"image_guidance/{i}/kernel"]
    if missing := [path for path in needed if path not in shapes]:
        raise InputError(f"{name}: the aggregator lacks {', '.join(missing)}; fetch the whole file again")
    return SedConfig(
        num_templates=shapes["embed/kernel"][2],
        width=shapes["embed/kernel"][3],
        decoder_widths=tuple(shapes[f"decoders/{i}/conv2"][3] for i in stages),
        level_widths=tuple(shapes[f"image_guidance/{i}/kernel"][2] for i in stages),
        guidance_widths=tuple(shapes[f"image_guidance/{i}/kernel"][3] for i in stages),
        num_heads=num_heads,
        kernel_sizes=tuple(shapes[f"decoders/{i}/block/depthwise/kernel"][0] for i in stages),
    )


def convert_aggregator(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights"
) -> Converted:
    """Renames the aggregator's tensors to the paths of `SedAggregator`.

    Args:
      source: State dict of an aggregator or of a whole SED.
      target: All shapes to fill, by "/" path.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
      InputError: `source` has no aggregator.
    """
    prefix = _find_prefix(source, name)
    values = convert(strip_prefix(source, prefix), AGGREGATOR_RULES, target, name=name).values
    return Converted(values, tuple(key for key in source if not key.startswith(prefix)))


def convert_sed(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Converts a whole SED: `--kind=sed`.

    Args:
      source: State dict of `sed_model_base.pth` or `sed_model_large.pth`, or of a model that SED's code trained with
        the same settings: four heads of class attention, images of 768 pixels.
      name: The file that `source` comes from, for error messages.

    Returns:
      Values below `visual/`, `text/` and `aggregator/`, the dropped keys, and the configuration as metadata.

    Raises:
      InputError: Another network, parts that do not fit each other, or an extra or missing tensor or one of a wrong
        shape.
    """
    visual, text = infer_convnext_clip(source, name)
    aggregator = infer_sed_config(source, name=name)
    try:
        config = SedWeightsConfig(visual, text, aggregator)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    rules = [
        *convnext_clip_rules(source, name),
        *below(AGGREGATOR_RULES, _find_prefix(source, name), "aggregator"),
        *_BESIDE_RULES,
    ]
    converted = convert(unpacked(source), rules, flatten(parameter_shapes(config)), name=name)
    return replace(converted, metadata=SED.metadata(config))


KINDS: dict[str, Converter] = {SED.kind: convert_sed}
