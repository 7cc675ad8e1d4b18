"""Labelers of published size for benchmarks: their architectures, and this project's form of them.

An architecture is plain data, so that processes can pass it on: a kind, "sed" or "maskclip", the fields of the
configurations of its parts, and the number of concepts of each class.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.clip.convnext import ClipConvNext, ClipConvNextConfig
from semiovs_jax.models.clip.convnext_params import convert_convnext
from semiovs_jax.models.clip.file import NORMALIZATIONS
from semiovs_jax.models.clip.vit import ClipVit, ClipVitConfig
from semiovs_jax.models.clip.vit_params import convert_visual
from semiovs_jax.models.precision import DTYPES
from semiovs_jax.models.sed.aggregator import SedAggregator, SedConfig
from semiovs_jax.models.sed.params import convert_aggregator
from semiovs_jax.ovs.maskclip import MaskClip
from semiovs_jax.ovs.sed import Sed
from semiovs_jax.ovs.vocabulary import Vocabulary
from semiovs_jax.runtime.flops import count_flops
from semiovs_jax.weights.keys import Converted, unflatten
from semiovs_jax.weights.parts import part_shapes

_LAYER_SCALE = 0.1  # the initial value of 1e-6 would hide the blocks
_NORMALIZATION = "clip"

_SEDS = {
    "sed-base": (ClipConvNextConfig(), SedConfig()),
    "sed-large": (
        ClipConvNextConfig(widths=(192, 384, 768, 1536), embed_dim=768, head_width=1536),
        SedConfig(level_widths=(768, 384, 192)),
    ),
}
MODELS = (*_SEDS, "maskclip")


@dataclasses.dataclass(frozen=True)
class Precision:
    """`dtype` and `matmul_precision` of a labeler."""

    dtype: str
    matmul_precision: str


# TF32 and float32 are the same on the CPU.
PRECISIONS = {
    "float32": Precision("float32", "highest"),
    "tf32": Precision("float32", "high"),
    "bfloat16": Precision("bfloat16", "highest"),
}


def architecture(model: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """The architecture of a published model, one of `MODELS`, for the concepts of a vocabulary."""
    if model in _SEDS:
        return sed_architecture(*_SEDS[model], vocabulary)
    return maskclip_architecture(ClipVitConfig(), vocabulary)


def sed_architecture(visual: ClipConvNextConfig, aggregator: SedConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """The architecture of a SED."""
    parts = {"visual": dataclasses.asdict(visual), "aggregator": dataclasses.asdict(aggregator)}
    return {"kind": "sed", **parts, **_settings(vocabulary)}


def maskclip_architecture(
    visual: ClipVitConfig, vocabulary: Vocabulary, *, logit_scale: float = 100.0
) -> dict[str, Any]:
    """The architecture of a MaskCLIP; each synonym is a concept."""
    settings = _settings(vocabulary.split_synonyms())
    return {"kind": "maskclip", "visual": dataclasses.asdict(visual), "logit_scale": logit_scale, **settings}


def _settings(vocabulary: Vocabulary) -> dict[str, Any]:
    mean, std = NORMALIZATIONS[_NORMALIZATION]
    counts = np.bincount(vocabulary.class_of_concept, minlength=len(vocabulary.classes))
    return {"concepts_per_class": counts.tolist(), "mean": mean, "std": std}


def random_text(architecture: Mapping[str, Any], seed: int = 0) -> np.ndarray:
    """Random unit embeddings of the concepts: float32 [T, P, D] for SED, [T, D] for MaskCLIP."""
    templates = (architecture["aggregator"]["num_templates"],) if "aggregator" in architecture else ()
    shape = (sum(architecture["concepts_per_class"]), *templates, architecture["visual"]["embed_dim"])
    text = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return text / np.linalg.norm(text, axis=-1, keepdims=True)


def patchwork(side: int, count: int = 1, patches: int = 4) -> np.ndarray:
    """Images of `patches` x `patches` random colors: smooth areas, as in photographs.

    Returns:
      float32 [count, side, side, 3] in 0..255.
    """
    colors = np.random.default_rng(0).uniform(0, 255, (count, patches, patches, 3)).astype(np.float32)
    index = np.arange(side) * patches // side
    return colors[:, index[:, None], index]


def make_labeler(
    architecture: Mapping[str, Any],
    text: np.ndarray,
    state_dict: Mapping[str, np.ndarray] | None,
    *,
    image_size: int,
    precision: Precision = PRECISIONS["float32"],
    class_chunk: int = 0,
    top_k: int = 0,
) -> Sed | MaskClip:
    """Builds this project's form of a labeler.

    Args:
      architecture: its architecture.
      text: embeddings as `random_text` returns them.
      state_dict: published names and weights; None for random weights.
      image_size: side of the square input, in pixels.
      precision: of the computation.
      class_chunk: for SED, see `Sed`.
      top_k: for SED, see `Sed`.
    """
    counts = architecture["concepts_per_class"]
    settings: dict[str, Any] = {
        "num_classes": len(counts),
        "image_size": image_size,
        "fingerprint": "",
        "normalization": _NORMALIZATION,
        "matmul_precision": precision.matmul_precision,
    }
    dtype, rngs = DTYPES[precision.dtype], nnx.Rngs
    if architecture["kind"] == "maskclip":
        visual = ClipVitConfig(**architecture["visual"])
        parts = {"visual": _part(lambda: ClipVit(visual, dtype=dtype, rngs=rngs(0)), convert_visual, state_dict)}
        return MaskClip(
            weights={"visual": parts["visual"][1], "text": jnp.asarray(text)},
            visual=parts["visual"][0],
            concepts_per_class=tuple(counts),
            logit_scale=architecture["logit_scale"],
            **settings,
        )
    tower, config = ClipConvNextConfig(**architecture["visual"]), SedConfig(**architecture["aggregator"])
    parts = {
        "visual": _part(
            lambda: ClipConvNext(tower, layer_scale=_LAYER_SCALE, dtype=dtype, rngs=rngs(0)),
            convert_convnext,
            state_dict,
        ),
        "aggregator": _part(lambda: SedAggregator(config, dtype=dtype, rngs=rngs(0)), convert_aggregator, state_dict),
    }
    return Sed(
        weights={name: weights for name, (_, weights) in parts.items()} | {"text": jnp.asarray(text)},
        visual=parts["visual"][0],
        aggregator=parts["aggregator"][0],
        class_of_concept=tuple(np.repeat(np.arange(len(counts)), counts).tolist()),
        short_side=640,
        class_chunk=class_chunk,
        top_k=top_k,
        **settings,
    )


def _part(
    make: Callable[[], nnx.Module],
    convert: Callable[..., Converted],
    state_dict: Mapping[str, np.ndarray] | None,
) -> tuple[nnx.GraphDef, Any]:
    """The graph of a module, and its converted or random weights."""
    graph = nnx.graphdef(nnx.eval_shape(make))
    if state_dict is None:
        return graph, jax.jit(lambda: nnx.to_pure_dict(nnx.state(make(), nnx.Param)))()
    shapes = part_shapes({"part": make})["part"]
    return graph, jax.tree.map(jnp.asarray, unflatten(convert(state_dict, shapes).values))


def flops(labeler: Sed | MaskClip) -> float:
    """FLOPs of the network for one image; see `count_flops`."""
    image = jax.ShapeDtypeStruct((1, labeler.image_size, labeler.image_size, 3), np.float32)
    network = labeler.probabilities if isinstance(labeler, Sed) else labeler.scores
    return count_flops(network, labeler.weights, image)
