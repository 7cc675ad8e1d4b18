"""Initial weights of a SED training: another SED, a CLIP with a ConvNeXt, or random weights."""

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip import file as clip_weights
from semiovs_jax.models.clip.convnext import ClipConvNext, ClipConvNextConfig
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.sed import file as sed_weights
from semiovs_jax.models.sed.aggregator import SedAggregator, SedConfig
from semiovs_jax.models.sed.file import SedWeights, SedWeightsConfig
from semiovs_jax.ovs.options import check_choices, multiples_of
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.weights.keys import flatten, unflatten
from semiovs_jax.weights.parts import weights_kind


def initial_sed(config: ml_collections.ConfigDict, num_templates: int) -> SedWeights:
    """A SED before training. Parts that no file provides are drawn from `config.seed`.

    Args:
      config: `init`, the path of a file of kind "sed" or "clip", or "" for random weights; and `model`: image_size,
        short_side, aggregator (unless `init` is a SED), and for random weights visual, text, layer_scale, embed_dim
        and normalization.
      num_templates: number of prompt templates of the vocabulary.

    Raises:
      InputError: `init` is missing or of another kind, its CLIP has no ConvNeXt, its SED was trained with another
        number of templates, or image_size is not a multiple of 32.
    """
    model = config.model
    check_choices("config.model", model, {"image_size": multiples_of(32)})
    if config.init and weights_kind(config.init) == sed_weights.SED.kind:
        return _from_sed(config, num_templates)
    rngs = nnx.Rngs(config.seed)
    if config.init:
        clip = clip_weights.load_clip(config.init)
        visual_config, text_config, normalization = clip.config.visual, clip.config.text, clip.config.normalization
        if not isinstance(visual_config, ClipConvNextConfig):
            raise InputError(f"config.init={config.init}: holds a CLIP with a ViT; SED needs one with a ConvNeXt")
        visual, text = clip.visual, clip.text
    else:
        visual_config = ClipConvNextConfig(embed_dim=model.embed_dim, **model.visual)
        vocab_size = make_tokenizer("bytes", model.text.context_length).vocab_size
        text_config = ClipTextConfig(
            vocab_size=vocab_size, embed_dim=model.embed_dim, tokenizer="bytes", activation="gelu", **model.text
        )
        normalization = model.normalization
        visual = _parameters(ClipConvNext(visual_config, layer_scale=model.layer_scale, rngs=rngs))
        visual = _scaled_to_width(visual, np.random.default_rng(config.seed))
        text = _parameters(ClipText(text_config, rngs=rngs))
    aggregator_config = SedConfig(
        num_templates=num_templates, level_widths=visual_config.widths[-2::-1], **model.aggregator
    )
    architecture = SedWeightsConfig(
        visual_config,
        text_config,
        aggregator_config,
        image_size=model.image_size,
        short_side=model.short_side,
        normalization=normalization,
    )
    aggregator = _parameters(SedAggregator(aggregator_config, rngs=rngs))
    return SedWeights(architecture, visual, text, aggregator, sha256="")


def _from_sed(config: ml_collections.ConfigDict, num_templates: int) -> SedWeights:
    sed = sed_weights.load_sed(config.init)
    expected = sed.config.aggregator.num_templates
    if expected != num_templates:
        raise InputError(
            f"config.init={config.init}: was trained with {expected} prompt templates, the vocabulary has "
            f"{num_templates}; set config.templates to the set it was trained with"
        )
    architecture = dataclasses.replace(
        sed.config, image_size=config.model.image_size, short_side=config.model.short_side
    )
    return dataclasses.replace(sed, config=architecture)


def _parameters(module: nnx.Module) -> dict[Any, Any]:
    # On the host: no weak types, which would make the second step compile again.
    return jax.device_get(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def _scaled_to_width(visual: dict[Any, Any], rng: np.random.Generator) -> dict[Any, Any]:
    """Redraws the matrices of the blocks with variance 1 / inputs.

    ConvNeXt's own standard deviation of 0.02 suits hundreds of channels. With a few tens of channels, the branches
    would contribute almost nothing for hundreds of steps.
    """
    flat = flatten(visual)
    for path in sorted(flat):
        if path.endswith(("expand/kernel", "contract/kernel")):
            shape = flat[path].shape
            flat[path] = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(flat[path].dtype)
    return unflatten(flat)
