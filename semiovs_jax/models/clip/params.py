"""A whole published CLIP, both towers, to the file that `file` reads."""

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
from semiovs_jax.models.clip.file import ClipConfig, parameter_shapes
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.clip.text_params import OPENAI_TOWER_RULES, convert_text, find_scheme, infer_text_config
from semiovs_jax.models.clip.vit_params import convert_visual, infer_config, scheme_of, unpacked
from semiovs_jax.weights.keys import Converted, Rule, below, convert
from semiovs_jax.weights.parts import flatten_parts

_VISUAL = ("visual.", "vision_model.", "visual_projection.")


def convert_clip(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Renames a CLIP with a ViT or a ConvNeXt image tower: the converter of `--kind=clip`.

    Args:
      source: State dict of OpenAI's, open_clip's or Hugging Face's CLIP.
      name: The file it comes from. Hugging Face's needs `config.json` beside it, which tells what weights do
        not: activation, heads and epsilon. ViTs of the others are taken to be OpenAI's (QuickGELU), ConvNeXts
        open_clip's (GELU), with 64 channels a head.

    Returns:
      Values below `visual/` and `text/`, the dropped names (neither tower's: `logit_scale` and the like), and
      the architecture as metadata.

    Raises:
      InputError: Another network, a missing `config.json`, or a tensor too many, too few or of a wrong shape.
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
    return Converted(values, tuple(key for key in source if key in dropped), {"config": config.to_json()})


def infer_convnext_clip(source: Mapping[str, Any], name: str) -> tuple[ClipConvNextConfig, ClipTextConfig]:
    """The architecture of open_clip's ConvNeXt towers, alone or in a SED; raises InputError if one is missing."""
    return infer_convnext_config(source, name=name), infer_text_config(source, activation="gelu", name=name)


def convnext_clip_rules(source: Mapping[str, Any], name: str) -> list[Rule]:
    """From open_clip's names, whatever stands before them in `source`, to paths below `visual/` and `text/`."""
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
    target = flatten_parts(parameter_shapes(config))
    converted = convert(unpacked(source), convnext_clip_rules(source, name), target, name=name)
    return replace(converted, metadata={"config": config.to_json()})


def _openai_facts() -> dict[str, dict[str, Any]]:
    return {"visual": {"eps": 1e-5, "activation": "quick_gelu"}, "text": {"activation": "quick_gelu"}}


def _huggingface_facts(name: str) -> dict[str, dict[str, Any]]:
    """What `config.json` says of both towers; what it leaves out has the default of transformers."""
    path = Path(name).with_name("config.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: {error}; fetch the config.json that lies beside {Path(name).name}") from error
    from transformers import CLIPConfig

    config: Any = CLIPConfig.from_dict(content)
    visual, text = config.vision_config, config.text_config
    if text.layer_norm_eps != 1e-5:
        raise InputError(f"{path}: text_config.layer_norm_eps is {text.layer_norm_eps}; CLIP's text tower has 1e-5")
    return {
        "visual": {
            "num_heads": visual.num_attention_heads,
            "eps": visual.layer_norm_eps,
            "activation": visual.hidden_act,
        },
        "text": {"num_heads": text.num_attention_heads, "activation": text.hidden_act},
    }
