"""Replays sed_decoder_*: a formula-weighted aggregator on stored features, at every pooling the file has."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.sed.aggregator import SedAggregator, SedLogits, correlate, unit
from semiovs_jax.models.sed.params import convert_aggregator, infer_sed_config
from semiovs_jax.weights.keys import flatten, unflatten
from tests.golden import Golden


def build(state_dict: dict[str, np.ndarray], num_heads: int, double: bool) -> tuple[nnx.GraphDef, dict[Any, Any]]:
    """The aggregator that `state_dict` fills."""
    config = infer_sed_config(state_dict, num_heads=num_heads)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: SedAggregator(config, rngs=nnx.Rngs(0))), nnx.Param)
    values = convert_aggregator(state_dict, flatten(nnx.to_pure_dict(shapes))).values
    dtype = jnp.float64 if double else jnp.float32
    return graph, unflatten({path: jnp.asarray(value, dtype) for path, value in values.items()})


def features_of(golden: Golden, double: bool) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """What the aggregator reads: dense embeddings, unit text embeddings and levels, the coarsest first."""
    dtype = jnp.float64 if double else jnp.float32
    levels = sorted((key for key in golden.keys if re.fullmatch(r"in_res\d", key)), reverse=True)
    dense, *levels = (jnp.asarray(golden[key].transpose(0, 2, 3, 1), dtype) for key in ("in_img_feats", *levels))
    return dense, unit(jnp.asarray(golden["in_text_feats"], dtype)), tuple(levels)


def forward(
    graph: nnx.GraphDef,
    params: dict[Any, Any],
    features: tuple[jax.Array, jax.Array, tuple[jax.Array, ...]],
    **settings: int,
) -> SedLogits:
    """One compiled forward."""
    return jax.jit(lambda params, features: nnx.merge(graph, params)(*features, **settings))(params, features)


def replay(golden: Golden, double: bool, class_chunk: int = 0) -> dict[str, np.ndarray]:
    graph, params = build(golden.state_dict(), golden.meta["config"]["nheads"], double)
    dense, text, levels = features_of(golden, double)
    correlation = correlate(dense, text)
    planes = correlation.reshape(-1, *correlation.shape[2:])
    embedded = jax.jit(lambda params, x: nnx.merge(graph, params).embed(x))(params, planes)
    outputs = {
        "corr": correlation.transpose(0, 4, 1, 2, 3),
        "corr_embed": embedded.reshape(*correlation.shape[:4], -1).transpose(0, 4, 1, 2, 3),
    }
    for pooling in sorted({match[1] for key in golden.keys if (match := re.match(r"pool(\d)\1_", key))}):
        found = forward(graph, params, (dense, text, levels), pooling=int(pooling), class_chunk=class_chunk)
        auxiliary = {f"aux{i}": logits for i, logits in enumerate(found.auxiliary)}
        for key, logits in {"logits": found.mask, **auxiliary}.items():
            outputs[f"pool{pooling}{pooling}_{key}"] = logits
    return {key: golden.stored(key, np.asarray(value)) for key, value in outputs.items()}
