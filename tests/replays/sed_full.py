"""Replays sed_full_*: a whole formula-weighted SED, from an image's pixels and a vocabulary's words to labels."""

import dataclasses
import os
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.clip.file import NORMALIZATIONS, normalize
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.models.sed.file import SED, SedWeights
from semiovs_jax.models.sed.params import convert_sed
from semiovs_jax.ovs.sed import Sed, make_sed
from semiovs_jax.ovs.vocabulary import Concept, Vocabulary, load_templates
from semiovs_jax.weights.keys import unflatten
from tests.golden import Golden


def _vocabulary(meta: dict[str, Any]) -> tuple[Vocabulary, list[int]]:
    """The golden's words, those of class 0 first, and where each concept stands in the golden."""
    concepts_of = [meta["class_to_concept_indices"][str(label)] for label in range(len(meta["class_groups"]))]
    places = [(label, place) for label, concepts in enumerate(concepts_of) for place in concepts]
    vocabulary = Vocabulary(
        name="golden",
        source="the golden's meta",
        classes=tuple(group[0] for group in meta["class_groups"]),
        concepts=tuple(Concept(label, tuple(meta["vocabulary"][place].split(", "))) for label, place in places),
        templates=load_templates("imagenet80"),
    )
    return vocabulary, [place for _, place in places]


def _weights(golden: Golden, double: bool) -> SedWeights:
    converted = convert_sed(golden.state_dict(), golden.path.name)
    settings = golden.meta["config"]
    config = SED.read(converted.metadata["config"])
    mean, std = NORMALIZATIONS[config.normalization]
    np.testing.assert_allclose(np.multiply(mean, 255), settings["MODEL.CLIP_PIXEL_MEAN"], rtol=1e-7)
    np.testing.assert_allclose(np.multiply(std, 255), settings["MODEL.CLIP_PIXEL_STD"], rtol=1e-7)
    assert config.text.num_heads == settings["open_clip"]["text_cfg"]["heads"]
    dtype = np.float64 if double else np.float32
    parts = unflatten({path: value.astype(dtype) for path, value in converted.values.items()})
    config = dataclasses.replace(config, short_side=settings["INPUT.MIN_SIZE_TEST"])
    return SedWeights(config, **parts, sha256="")


def _make(golden: Golden, vocabulary: Vocabulary, double: bool) -> Sed:
    """The model, its text embedded by its own tower and not by what an earlier run left in the cache."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, SEMIOVS_CACHE=cache):
        return make_sed(_weights(golden, double), vocabulary)


def replay(golden: Golden, double: bool) -> dict[str, np.ndarray]:
    image, meta = golden["image"], golden.meta
    vocabulary, places = _vocabulary(meta)
    model = _make(golden, vocabulary, double)
    canvas = image.shape[:2]

    def forward(weights: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        # The compiler computes only once what these stages share.
        square = normalize(pixels, model.normalization)
        features = nnx.merge(model.visual, weights["visual"])(square)
        aggregator = nnx.merge(model.aggregator, weights["aggregator"])
        logits = aggregator(features.dense, weights["text"], features.levels[-2::-1]).mask
        probabilities = jnp.moveaxis(model.probabilities(weights, pixels), 1, -1)
        levels = {f"res{i}": level for i, level in enumerate(features.levels, start=2)}
        planes = {
            "clip_input": square,
            "clip_vis_dense": features.dense,
            "logits": jnp.moveaxis(logits, 1, -1),
            "sem_seg": resize_bilinear(probabilities, canvas, align_corners=False),
            **levels,
        }
        planes = {key: jnp.moveaxis(plane, -1, 1) for key, plane in planes.items()}
        return {**planes, "label": model.label(weights, pixels, label_size=canvas).label}

    pixels = jnp.asarray(model.preprocess(image), jnp.float64 if double else jnp.float32)[None]
    outputs = {key: np.asarray(value) for key, value in jax.jit(forward)(model.weights, pixels).items()}
    in_golden_order = np.argsort(places)
    sem_seg = outputs["sem_seg"][0, in_golden_order]
    concepts_of = meta["class_to_concept_indices"]
    outputs |= {
        "text_features": np.asarray(model.weights["text"])[in_golden_order],
        "logits": outputs["logits"][:, in_golden_order],
        "sem_seg": sem_seg,
        "agg": np.stack([sem_seg[concepts_of[str(label)]].max(axis=0) for label in range(model.num_classes)]),
        "label": outputs["label"][0].astype(np.uint8),
    }
    return {key: golden.stored(key, value) for key, value in outputs.items()}
