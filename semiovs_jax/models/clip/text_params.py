"""CLIP's text tower: the names of open_clip and OpenAI, and those of Hugging Face, to ours.

A state dict may contain a whole model. The name of the token embedding gives the tower's prefix (SED's is
`sem_seg_head.predictor.clip_model.`); names outside the tower are dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.clip.vit_params import unpacked
from semiovs_jax.weights.keys import Converted, Rule, convert, prefixes, strip_prefix, target_shapes
from semiovs_jax.weights.rules import attention, linear, norm

OPENAI_TOWER_RULES = [
    Rule(r"token_embedding\.weight", "token_embed/embedding"),
    Rule(r"positional_embedding", "pos_embed"),
    *norm(r"transformer\.resblocks\.(\d+)\.ln_1", r"layers/\1/norm1"),
    *attention(r"transformer\.resblocks\.(\d+)\.attn"),
    *norm(r"transformer\.resblocks\.(\d+)\.ln_2", r"layers/\1/norm2"),
    *linear(r"transformer\.resblocks\.(\d+)\.mlp\.c_fc", r"layers/\1/mlp/expand"),
    *linear(r"transformer\.resblocks\.(\d+)\.mlp\.c_proj", r"layers/\1/mlp/contract"),
    *norm(r"ln_final", "final_norm"),
    Rule(r"text_projection", "projection/kernel"),
]

OPENAI_RULES = [
    *OPENAI_TOWER_RULES,
    Rule(r"visual\..*", None),
    Rule(r"logit_scale|attn_mask|input_resolution|context_length|vocab_size", None),
]

HUGGINGFACE_RULES = [
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "token_embed/embedding"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "pos_embed"),
    *norm(r"text_model\.encoder\.layers\.(\d+)\.layer_norm1", r"layers/\1/norm1"),
    *attention(r"text_model\.encoder\.layers\.(\d+)\.self_attn"),
    *norm(r"text_model\.encoder\.layers\.(\d+)\.layer_norm2", r"layers/\1/norm2"),
    *linear(r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc1", r"layers/\1/mlp/expand"),
    *linear(r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc2", r"layers/\1/mlp/contract"),
    *norm(r"text_model\.final_layer_norm", "final_norm"),
    Rule(r"text_projection\.weight", "projection/kernel", "linear"),
    Rule(r"(vision_model|visual_projection)\..*", None),
    Rule(r"logit_scale|text_model\.embeddings\.position_ids", None),
]

_SCHEMES = {
    "token_embedding.weight": OPENAI_RULES,
    "text_model.embeddings.token_embedding.weight": HUGGINGFACE_RULES,
}


def find_scheme(source: Mapping[str, Any], name: str) -> tuple[str, list[Rule]]:
    """The prefix of the tower's names, and the rules for the names after it.

    Raises:
      InputError: `source` has no text tower, or several.
    """
    for embedding, rules in reversed(_SCHEMES.items()):
        if len(found := prefixes(source, re.escape(embedding))) == 1:
            return found[0], rules
    raise InputError(
        f"{name}: no CLIP text tower: expected one of {', '.join(_SCHEMES)} exactly once; "
        "give a state dict of open_clip, OpenAI or Hugging Face CLIP"
    )


def infer_text_config(
    source: Mapping[str, np.ndarray],
    *,
    activation: str,
    num_heads: int | None = None,
    tokenizer: str = "clip_bpe",
    name: str = "weights",
) -> ClipTextConfig:
    """Infers the architecture from the shapes of `source`.

    Args:
      source: State dict of a text tower or of a whole CLIP.
      activation: "quick_gelu" (OpenAI) or "gelu" (open_clip's ConvNeXt models); shapes do not determine it.
      num_heads: Attention heads; None: one per 64 channels, as in CLIP.
      tokenizer: Name of the tokenizer whose ids the tower reads.
      name: The file that `source` comes from, for error messages.

    Raises:
      InputError: `source` has no text tower, or an incomplete one.
    """
    prefix, rules = find_scheme(source, name)
    shapes = target_shapes(unpacked(strip_prefix(source, prefix)), rules)
    layers = {int(path.split("/")[1]) for path in shapes if path.startswith("layers/")}
    missing = [path for path in ("pos_embed", "projection/kernel") if path not in shapes]
    if missing or not layers:
        lacking = ", ".join(missing) or "its transformer blocks"
        raise InputError(f"{name}: the text tower lacks {lacking}; fetch the whole file again")
    vocab_size, width = shapes["token_embed/embedding"]
    return ClipTextConfig(
        vocab_size=vocab_size,
        context_length=shapes["pos_embed"][0],
        width=width,
        num_layers=1 + max(layers),
        num_heads=num_heads or width // 64,
        embed_dim=shapes["projection/kernel"][1],
        activation=activation,
        tokenizer=tokenizer,
    )


def convert_text(source: Mapping[str, np.ndarray], target: Mapping[str, Any], *, name: str = "weights") -> Converted:
    """Renames the text tower's tensors to the paths of `ClipText`.

    Args:
      source: State dict of a text tower or of a whole CLIP, in either scheme.
      target: All shapes to fill, by "/" path.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
      InputError: `source` has no text tower.
    """
    prefix, rules = find_scheme(source, name)
    converted = convert(unpacked(strip_prefix(source, prefix)), rules, target, name=name)
    dropped = [prefix + key for key in converted.dropped]
    others = [key for key in source if not key.startswith(prefix)]
    return Converted(converted.values, (*dropped, *others))
