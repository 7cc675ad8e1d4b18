"""MaskCLIP's vision transformer: value paths, dense and pooled embeddings, probes of the inside."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.clip.vit import ClipFeatures, ClipVit, ClipVitConfig
from semiovs_jax.models.clip.vit_params import convert_visual, infer_config
from semiovs_jax.weights.keys import flatten, unflatten
from tests.golden import Golden


def build(
    state_dict: dict[str, np.ndarray], config: dict[str, Any], double: bool
) -> tuple[nnx.GraphDef, dict[Any, Any], ClipVitConfig]:
    """The tower that `state_dict` (SemiVL's names) fills, with what shapes do not tell taken from `config`."""
    size = config["img_size"]
    vision = infer_config(
        state_dict,
        num_heads=config.get("num_heads"),
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        eps=config.get("norm_cfg", {}).get("eps", 1e-6),
        activation={"GELU": "gelu"}[config.get("act_cfg", {}).get("type", "GELU")],
    )
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ClipVit(vision, rngs=nnx.Rngs(0))), nnx.Param)
    values = convert_visual(state_dict, flatten(nnx.to_pure_dict(shapes))).values
    dtype = np.float64 if double else np.float32
    return graph, unflatten({path: jnp.asarray(value, dtype) for path, value in values.items()}), vision


def forward(
    graph: nnx.GraphDef, params: dict[Any, Any], image: jax.Array, out_indices: tuple[int, ...] = ()
) -> ClipFeatures:
    """One compiled forward."""
    return jax.jit(lambda p, x: nnx.merge(graph, p)(x, out_indices=out_indices))(params, image)


def image_of(golden: Golden, key: str, double: bool) -> jax.Array:
    """A stored NCHW image as NHWC."""
    return jnp.asarray(golden[key].transpose(0, 2, 3, 1), np.float64 if double else np.float32)


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    """Runs every configuration of the golden on every input."""
    outputs: dict[str, np.ndarray] = {}
    state_dict = golden.state_dict()
    for name, config in golden.meta["config"].items():
        graph, params, vision = build(state_dict, config, double)
        depth = vision.num_layers
        indices = [depth] if config["out_indices"] is None else config["out_indices"]
        for key in golden.keys:
            if not key.startswith("input_"):
                continue
            inner = tuple(i for i in indices if i < depth)
            features = forward(graph, params, image_of(golden, key, double), inner)
            levels = [*features.levels, *([features.dense] if depth in indices else [])]
            prefix = f"{name}_{key.removeprefix('input_')}"
            for j, level in enumerate(levels):
                outputs[f"{prefix}_feat{j}"] = np.asarray(level).transpose(0, 3, 1, 2)
            outputs[f"{prefix}_global"] = np.asarray(features.pooled)
    return outputs
