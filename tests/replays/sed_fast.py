"""Replays sed_fast_*: probabilities of the aggregator with classes pruned, at every top-k the file has."""

import re

import jax
import numpy as np

from tests.golden import Golden
from tests.replays.sed_decoder import build, features_of, forward


def _less_spatial(name: str, value: np.ndarray, damping: float) -> np.ndarray:
    """The weights of the `prune_*` outputs: damped beside the center, so that classes differ more than pixels."""
    if re.search(r"(decoder\d\.up|decoder_corr_guidance_projection\.\d\.0)\.weight$", name):
        return np.broadcast_to(value[:, :, :1, :1], value.shape)
    if value.ndim == 4 and value.shape[-1] in (3, 7, 9):
        center = value.shape[-1] // 2
        damped = value * np.float32(damping)
        damped[:, :, center, center] = value[:, :, center, center]
        return damped
    return value


def replay(golden: Golden, double: bool, class_chunk: int = 0) -> dict[str, np.ndarray]:
    state_dict, num_heads = golden.state_dict(), golden.meta["config"]["nheads"]
    features = features_of(golden, double)
    outputs = {}
    for prefix in ("", "prune_"):
        if prefix:
            damping = golden.meta["prune_damping"]
            state_dict = {name: _less_spatial(name, value, damping) for name, value in state_dict.items()}
        graph, params = build(state_dict, num_heads, double)
        for key in golden.keys:
            if match := re.fullmatch(rf"{prefix}fast(\d+)", key):
                logits = forward(graph, params, features, top_k=int(match[1]), class_chunk=class_chunk).mask
                outputs[key] = jax.nn.sigmoid(logits)
        if f"{prefix}full_logits" in golden:
            outputs[f"{prefix}full_logits"] = forward(graph, params, features, class_chunk=class_chunk).mask
    return {key: golden.stored(key, np.asarray(value)) for key, value in outputs.items()}
