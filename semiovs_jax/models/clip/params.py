"""Converts a whole published CLIP, both towers, to the file that `file.load_clip` reads."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNextConfig
from semiovs_jax.models.clip.convnext_params import RULES, find_prefix, infer_convnext_config
from semiovs_jax.models.clip.file import CLIP, ClipConfig, parameter_shapes
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.clip.text_params import OPENAI_TOWER_RULES, convert_text, find_scheme, infer_text_config
from semiovs_jax.models.clip.vit_params import convert_visual, infer_config, scheme_of, unpacked
from semiovs_jax.weights.keys import Converted, Converter, Rule, below, convert, flatten

_VISUAL = ("visual.", "vision_model.", "visual_projection.")


def convert_clip(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Converts a CLIP with a ViT or a ConvNeXt image tower: `--kind=clip`.

    Args:
      source: State dict of OpenAI's, open_clip's or Hugging Face's CLIP.
      name: The file that `source` comes from. For Hugging Face's, activation, heads and epsilon are read from the
        `config.json` next to it. Other ViTs are treated as OpenAI's (QuickGELU), ConvNeXts as open_clip's (GELU),
        with 64 channels per head.

    Returns:
      Values below `visual/` and `text/`, the dropped keys (those of neither tower, such as `logit_scale`), and the
      architecture as metadata.

    Raises:
      InputError: Another network, a missing `config.json`, or an extra or missing tensor or one of a wrong shape.
    """
    if find_prefix(source) is not None:
        return _convert_convnext_clip(source, name)
    visual = {key: value for key, value in source.items() if key.startswith(_VISUAL)}
    facts = _huggingface_facts(name) if scheme_of(source, name=name) == "huggingface" else _openai_facts()
    config = ClipConfig(
        visual=infer_config(visual, **facts["visual"], name=name),
        text=infer_text_config(source, **facts["text"], name=name),
    )
    shapes = parameter_shapes(config)
    towers = {
        "visual": convert_visual(visual, shapes["visual"], name=name),
        "text": convert_text(source, shapes["text"], name=name),
    }
    values = {f"{tower}/{path}": v for tower, found in towers.items() for path, v in found.values.items()}
    dropped = {*towers["visual"].dropped, *(key for key in towers["text"].dropped if key not in visual)}
    return Converted(values, tuple(key for key in source if key in dropped), CLIP.metadata(config))


def infer_convnext_clip(source: Mapping[str, Any], name: str) -> tuple[ClipConvNextConfig, ClipTextConfig]:
    """Infers the architecture of open_clip's towers in a CLIP or a SED; raises InputError if one is missing."""
    return infer_convnext_config(source, name=name), infer_text_config(source, activation="gelu", name=name)


def convnext_clip_rules(source: Mapping[str, Any], name: str) -> list[Rule]:
    """Rules from open_clip's names, with the prefixes found in `source`, to paths below `visual/` and `text/`."""
    prefix, (text_prefix, _) = find_prefix(source) or "", find_scheme(source, name)
    return [
        *below(RULES, prefix, "visual"),
        *below(OPENAI_TOWER_RULES, text_prefix, "text"),
        Rule(rf"(?:{re.escape(prefix)}|{re.escape(text_prefix)})(?:logit_scale|attn_mask)", None),
    ]


def _convert_convnext_clip(source: Mapping[str, np.ndarray], name: str) -> Converted:
    visual, text = infer_convnext_clip(source, name)
    try:
        config = ClipConfig(visual, text)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    target = flatten(parameter_shapes(config))
    converted = convert(unpacked(source), convnext_clip_rules(source, name), target, name=name)
    return replace(converted, metadata=CLIP.metadata(config))


def _openai_facts() -> dict[str, dict[str, Any]]:
    return {"visual": {"eps": 1e-5, "activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}}


def _huggingface_facts(name: str) -> dict[str, dict[str, Any]]:
    """Facts of both towers in `config.json`; missing fields have the defaults of transformers."""
    path = Path(name).with_name("config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: {error}; fetch the config.json that is published with {Path(name).name}") from error
    from transformers import CLIPConfig

    config: Any = CLIPConfig.from_dict(content)
    visual, text = config.vision_config, config.text_config
    if text.layer_norm_eps != 1e-5:
        raise InputError(
            f"{path}: text_config.layer_norm_eps is {text.layer_norm_eps}, expected 1e-5; give a CLIP model"
        )
    return {
        "visual": {
            "num_heads": visual.num_attention_heads,
            "eps": visual.layer_norm_eps,
            "activation": visual.hidden_act,
        },
        "text": {"num_heads": text.num_attention_heads, "activation": text.hidden_act},
    }


KINDS: dict[str, Converter] = {CLIP.kind: convert_clip}
