"""Replays clip_convnext_*: the levels and the dense embedding of a formula-weighted ConvNeXt tower."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.clip.convnext import ClipConvNext
from semiovs_jax.models.clip.convnext_params import convert_convnext, infer_convnext_config
from semiovs_jax.weights.keys import flatten, unflatten
from tests.golden import Golden


def build(state_dict: dict[str, np.ndarray], double: bool) -> tuple[nnx.GraphDef, dict[Any, Any]]:
    """The tower that `state_dict` fills."""
    config = infer_convnext_config(state_dict)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ClipConvNext(config, rngs=nnx.Rngs(0))), nnx.Param)
    values = convert_convnext(state_dict, flatten(nnx.to_pure_dict(shapes))).values
    dtype = jnp.float64 if double else jnp.float32
    return graph, unflatten({path: jnp.asarray(value, dtype) for path, value in values.items()})


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    graph, params = build(golden.state_dict(), double)

    def forward(params: dict[Any, Any], image: jax.Array) -> dict[str, jax.Array]:
        tower = nnx.merge(graph, params)
        features = tower(image)
        stem = tower.stem_norm(tower.stem(image))
        levels = {f"res{i}": level for i, level in enumerate(features.levels, start=2)}
        return {"stem": stem, "clip_vis_dense": features.dense, **levels}

    image = jnp.asarray(golden["image"].transpose(0, 2, 3, 1), jnp.float64 if double else jnp.float32)
    found = jax.jit(forward)(params, image)
    return {key: golden.stored(key, np.asarray(value).transpose(0, 3, 1, 2)) for key, value in found.items()}
