"""Replays sed_full_*: one image from its pixels to its label, formula-weighted, text tower included."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from semiovs_jax.convert.clip_text import convert_text, infer_text_config
from semiovs_jax.convert.keys import flatten, unflatten
from semiovs_jax.models.clip_text import ClipText
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.ovs.text import embed_prompts
from semiovs_jax.ovs.tokenizer import make_tokenizer
from semiovs_jax.ovs.vocabulary import Concept, Vocabulary, load_templates
from tests.golden import Golden
from tests.replays import clip_convnext, sed_decoder

_SIDE = 768  # of the square the image tower sees: a constant of the reference's code


def _vocabulary(meta: dict[str, Any]) -> Vocabulary:
    class_of = {i: int(label) for label, rows in meta["class_to_concept_indices"].items() for i in rows}
    templates = load_templates("imagenet80")
    assert len(templates) == meta["config"]["prompt_templates"]
    return Vocabulary(
        name="golden",
        source="the golden's meta",
        classes=tuple(group[0] for group in meta["class_groups"]),
        concepts=tuple(Concept(class_of[i], tuple(name.split(", "))) for i, name in enumerate(meta["vocabulary"])),
        templates=templates,
    )


def _embed_text(state_dict: dict[str, np.ndarray], golden: Golden, double: bool) -> np.ndarray:
    config = infer_text_config(
        state_dict, activation="gelu", num_heads=golden.meta["config"]["open_clip"]["text_cfg"]["heads"]
    )
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ClipText(config, rngs=nnx.Rngs(0))), nnx.Param)
    values = convert_text(state_dict, flatten(nnx.to_pure_dict(shapes))).values
    dtype = jnp.float64 if double else jnp.float32
    params = unflatten({path: jnp.asarray(value, dtype) for path, value in values.items()})
    tokenizer = make_tokenizer(config.tokenizer, config.context_length)
    return embed_prompts(lambda p, ids: nnx.merge(graph, p)(ids), params, _vocabulary(golden.meta), tokenizer)


def _resize(image: np.ndarray, short: int, longest: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = min(short / min(height, width), longest / max(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    meta, state_dict = golden.meta, golden.state_dict()
    settings = meta["config"]
    dtype = jnp.float64 if double else jnp.float32
    image = golden["image"]
    resized = _resize(image, settings["INPUT.MIN_SIZE_TEST"], settings["INPUT.MAX_SIZE_TEST"])
    text = _embed_text(state_dict, golden, double)
    tower, visual = clip_convnext.build(state_dict, double)
    aggregator, weights = sed_decoder.build(state_dict, 4, double)

    def forward(params: Any, pixels: jax.Array, text: jax.Array) -> dict[str, jax.Array]:
        mean, std = (jnp.asarray(settings[f"MODEL.CLIP_PIXEL_{name}"], dtype) for name in ("MEAN", "STD"))
        square = resize_bilinear((pixels - mean) / std, (_SIDE, _SIDE), align_corners=False)
        features = nnx.merge(tower, params["visual"])(square)
        logits = nnx.merge(aggregator, params["aggregator"])(features.dense, text, features.levels[-2::-1]).mask
        probability = jnp.moveaxis(jax.nn.sigmoid(logits), 1, -1)
        levels = {f"res{i}": level for i, level in enumerate(features.levels, start=2)}
        return {
            "clip_input": square,
            "clip_vis_dense": features.dense,
            "logits": jnp.moveaxis(logits, 1, -1),
            "sem_seg": resize_bilinear(probability, image.shape[:2], align_corners=False),
            **levels,
        }

    params = {"visual": visual, "aggregator": weights}
    found = jax.jit(forward)(params, jnp.asarray(resized, dtype)[None], jnp.asarray(text, dtype))
    outputs = {key: np.moveaxis(np.asarray(value), -1, 1) for key, value in found.items()}
    (sem_seg,) = outputs["sem_seg"]
    classes = meta["class_to_concept_indices"]
    agg = np.stack([sem_seg[classes[str(i)]].max(axis=0) for i in range(len(classes))])
    outputs |= {
        "text_features": text,
        "image_resized": resized.transpose(2, 0, 1),
        "sem_seg": sem_seg,
        "agg": agg,
        "label": agg.argmax(axis=0).astype(np.uint8),
    }
    return {key: golden.stored(key, value) for key, value in outputs.items()}
