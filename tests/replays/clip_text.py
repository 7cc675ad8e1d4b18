"""Replays clip_text_*: token ids and text features of a formula-weighted text tower."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.clip.text import ClipText
from semiovs_jax.models.clip.text_params import convert_text, infer_text_config
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.weights.keys import flatten, unflatten
from tests.golden import Golden


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    meta = golden.meta
    source = golden.state_dict()
    # The reference's tower is open_clip's: exact GELU.
    config = infer_text_config(source, activation="gelu", num_heads=meta["config"]["heads"])
    graph, params = nnx.split(nnx.eval_shape(lambda: ClipText(config, rngs=nnx.Rngs(0))), nnx.Param)
    target = flatten(nnx.to_pure_dict(params))
    values = convert_text(source, target, name=golden.path.name).values
    dtype = jnp.float64 if double else jnp.float32
    params = jax.tree.map(lambda value: jnp.asarray(value, dtype), unflatten(values))

    tokenizer = make_tokenizer(config.tokenizer, config.context_length)
    ids = tokenizer.encode(meta["prompts"])
    features = np.asarray(jax.jit(lambda params, ids: nnx.merge(graph, params)(ids))(params, ids))
    return {
        "token_ids": ids,
        "token_ids_only": tokenizer.encode(meta["tokenizer_only_prompts"]),
        "text_features": features,
        "text_features_norm": features / np.linalg.norm(features, axis=-1, keepdims=True),
    }
