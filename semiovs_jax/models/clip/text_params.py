"""CLIP's text tower: the names of open_clip and OpenAI, and those of Hugging Face, to ours.

A state dict may be that of a whole model: the tower is found by its token embedding, whatever prefix stands
before it (SED's is `sem_seg_head.predictor.clip_model.`), and the rest is dropped by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.clip.vit_params import unpacked
from semiovs_jax.weights.keys import Converted, Rule, convert, target_shapes
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
    """Prefix of the tower's names and the rules for what follows it.

    Raises:
      InputError: `source` has no text tower, or several.
    """
    for mark, rules in reversed(_SCHEMES.items()):
        found = [key for key in source if key == mark or key.endswith("." + mark)]
        if len(found) == 1:
            return found[0].removesuffix(mark), rules
    raise InputError(
        f"{name}: no CLIP text tower: one of {', '.join(_SCHEMES)} must be in it, once; "
        "give a state dict of open_clip, OpenAI or Hugging Face CLIP"
    )


def _split(source: Mapping[str, np.ndarray], prefix: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tensors below `prefix`, their names without it, and the names of all others."""
    inside = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
    return unpacked(inside), tuple(key for key in source if not key.startswith(prefix))


def infer_text_config(
    source: Mapping[str, np.ndarray],
    *,
    activation: str,
    num_heads: int | None = None,
    tokenizer: str = "clip_bpe",
    name: str = "weights",
) -> ClipTextConfig:
    """The architecture whose weights `source` holds, read off its shapes.

    Args:
      source: State dict of a text tower or of a whole CLIP.
      activation: "quick_gelu" (OpenAI) or "gelu" (open_clip's ConvNeXt models); weights do not tell.
      num_heads: Attention heads; None for CLIP's rule, one per 64 channels.
      tokenizer: Whose ids the tower reads.
      name: What `source` is, for error messages.

    Raises:
      InputError: There is no text tower in `source`.
    """
    prefix, rules = find_scheme(source, name)
    shapes = target_shapes(_split(source, prefix)[0], rules)
    layers = {int(path.split("/")[1]) for path in shapes if path.startswith("layers/")}
    missing = [path for path in ("pos_embed", "projection/kernel") if path not in shapes]
    if missing or not layers:
        raise InputError(f"{name}: the text tower lacks {', '.join(missing) or 'its transformer blocks'}")
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
      target: What `keys.convert` fills: shapes by "/" path.
      name: What `source` is, for error messages.

    Raises:
      WeightMismatchError: As `keys.convert`.
      InputError: There is no text tower in `source`.
    """
    prefix, rules = find_scheme(source, name)
    inside, others = _split(source, prefix)
    converted = convert(inside, rules, target, name=name)
    dropped = tuple(prefix + key for key in converted.dropped)
    return Converted(converted.values, (*dropped, *others))
