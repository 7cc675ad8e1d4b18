"""SED as an OVS: cosines of CLIP's pixel embeddings and the prompts' text embeddings, refined by the aggregator.

Sources: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024; SemiOVS,
`generate_pseudo_label_via_ovs` (`inference.py`, and SED's `sed_model.py`), whose labels this module reproduces. The
reference discards the probability of a label; here it is the label's confidence.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.errors import Faults, InputError
from data_pipelines.images.transforms import resize_image
from semiovs_jax.models.clip.convnext import ClipConvNext
from semiovs_jax.models.clip.file import NORMALIZATIONS, normalize
from semiovs_jax.models.layers import inside, resize_bilinear
from semiovs_jax.models.precision import DTYPES, PRECISIONS
from semiovs_jax.models.sed.aggregator import SedAggregator
from semiovs_jax.models.sed.file import SED, SedWeights, SedWeightsConfig, load_sed
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.options import at_least, check_choices, multiples_of
from semiovs_jax.ovs.text import embed_text
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary
from semiovs_jax.weights.parts import missing_weights, stored_sha256

_STRIDE = 32  # of the image tower's last level
_LONGEST_OVER_SHORT = 4  # INPUT.MAX_SIZE_TEST 2560 over MIN_SIZE_TEST 640
_ALLOWED: dict[str, Collection[Any]] = {
    "image_size": multiples_of(_STRIDE),
    "normalization": NORMALIZATIONS,
    "dtype": DTYPES,
    "matmul_precision": PRECISIONS,
    "top_k": at_least(0),
    "class_chunk": at_least(0),
}
_SOURCE = "fetch sed_model_base.pth or sed_model_large.pth, which SED's repository links to"
_WITHOUT = "train without OVS labels with --config.method.ood=none"


def label_probabilities(
    probabilities: jax.Array,
    class_of_concept: Sequence[int],
    label_size: tuple[int, int],
    *,
    size: jax.Array | None = None,
) -> PseudoLabel:
    """Resizes the probabilities of concepts and takes the most probable class of each pixel.

    Probabilities are resized, not logits. The probability of a class is the maximum over its concepts. Concepts are
    processed one at a time, so that memory does not grow with the vocabulary.

    Args:
      probabilities: float [N, T, h, w] in 0..1; they need not sum to 1.
      class_of_concept: the class of each concept, ascending: at a tie the lowest class wins.
      label_size: (height, width) of the labels.
      size: int32 [N, 2], (height, width) of each image in the top left of its label; None if it fills the label.

    Returns:
      The most probable class of each pixel and its probability. Invalid outside `size`.
    """

    def compete(
        best: tuple[jax.Array, jax.Array], concept: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        confidence, label = best
        plane, class_index = concept
        plane = resize_bilinear(plane[..., None], label_size, align_corners=False, target_size=size)[..., 0]
        wins = plane > confidence
        return (jnp.where(wins, plane, confidence), jnp.where(wins, class_index, label)), None

    shape = (len(probabilities), *label_size)
    nothing = jnp.full(shape, -1, probabilities.dtype), jnp.zeros(shape, jnp.int32)
    concepts = jnp.moveaxis(probabilities, 1, 0), jnp.asarray(class_of_concept, jnp.int32)
    (confidence, label), _ = jax.lax.scan(compete, nothing, concepts)
    valid = jnp.ones(shape, bool) if size is None else inside(size, label_size)
    return PseudoLabel(label, confidence, valid)


@dataclasses.dataclass(eq=False)
class Sed:
    """SED and the text embeddings of a vocabulary, as an OVS (see `base.OVS`).

    Attributes:
      weights: {"visual", "aggregator": parameters, "text": float32 [T, P, D], T concepts in P templates}.
      num_classes: classes of the vocabulary.
      image_size: side of the square input of the image tower, in pixels.
      fingerprint: sha256 over vocabulary, weights and settings.
      visual: graph of the image tower.
      aggregator: graph of the aggregator.
      class_of_concept: the class of each concept, ascending.
      normalization: a key of `NORMALIZATIONS`.
      short_side: images are resized to this shortest side, in pixels, and then to the square; 0 for the square alone.
      class_chunk: number of concepts the aggregator computes at a time, which bounds memory; 0 for all.
      top_k: number of concepts that each pixel keeps on the fast path (`SedAggregator`); 0 for the exact path.
      matmul_precision: one of `PRECISIONS`, of the products of tower and aggregator.
    """

    weights: Any
    num_classes: int
    image_size: int
    fingerprint: str
    visual: nnx.GraphDef
    aggregator: nnx.GraphDef
    class_of_concept: tuple[int, ...]
    normalization: str
    short_side: int
    class_chunk: int
    top_k: int
    matmul_precision: str = "highest"

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image to the square input of the tower, in two steps as the reference.

        First PIL's antialiased bilinear filter resizes the image to the short side and rounds it to integers. Then
        plain bilinear interpolation stretches it to the square.

        Args:
          image: uint8 [H, W, 3], RGB.

        Returns:
          float32 [S, S, 3] in 0..255. Without a short side, uint8: PIL resizes to the square in one step.
        """
        if not self.short_side:
            return resize_image(image, (self.image_size, self.image_size))
        height, width = image.shape[:2]
        scale = self.short_side / min(height, width)
        scale = min(scale, _LONGEST_OVER_SHORT * self.short_side / max(height, width))
        resized = resize_image(image, (int(height * scale + 0.5), int(width * scale + 0.5)))
        return _interpolate(_interpolate(resized, self.image_size, 0), self.image_size, 1)

    def probabilities(self, weights: Any, image: jax.Array) -> jax.Array:
        """Probabilities of concepts [N, T, S / 4, S / 4]; 0 for pruned concepts. `image` is as in `label`."""
        side = self.image_size
        if image.shape[1:3] != (side, side):
            image = resize_bilinear(image, (side, side), align_corners=False)
        visual = nnx.merge(self.visual, weights["visual"])
        aggregator = nnx.merge(self.aggregator, weights["aggregator"])
        with jax.default_matmul_precision(self.matmul_precision):
            features = visual(normalize(image, self.normalization))
            guides = features.levels[-2::-1]
            found = aggregator(features.dense, weights["text"], guides, class_chunk=self.class_chunk, top_k=self.top_k)
        return jax.nn.sigmoid(found.mask)

    def label(
        self, weights: Any, image: jax.Array, *, label_size: tuple[int, int], size: jax.Array | None = None
    ) -> PseudoLabel:
        """Labels images; a pure function of `weights` and `image`.

        Args:
          weights: this model's `weights`.
          image: float [N, S, S, 3], RGB in 0..255, from `preprocess`. Other sizes are resized to the square.
          label_size: (height, width) of the labels.
          size: int32 [N, 2], (height, width) of each image in the top left of its label; None if it fills the label.

        Returns:
          Labels of `label_size`. Invalid outside `size`.
        """
        return label_probabilities(self.probabilities(weights, image), self.class_of_concept, label_size, size=size)


def make_sed(
    sed: SedWeights,
    vocabulary: Vocabulary,
    *,
    image_size: int = 0,
    normalization: str = "",
    dtype: str = "float32",
    matmul_precision: str = "highest",
    class_chunk: int = 0,
    top_k: int = 0,
) -> Sed:
    """Embeds the vocabulary and combines it with the image tower and the aggregator.

    Args:
      sed: all weights.
      vocabulary: classes, their concepts, and the templates that the aggregator was trained with, in the same order.
      image_size: side of the square input of the image tower, in pixels, a multiple of 32; 0 for the weights' own.
      normalization: a key of `NORMALIZATIONS`; "" for the statistics the tower was trained with.
      dtype: of the computation, "float32" or "bfloat16".
      matmul_precision: of products in float32, one of `PRECISIONS`.
      class_chunk: number of concepts that are computed at a time; 0 for all.
      top_k: number of concepts that each pixel keeps on the fast path; 0 for the exact path.

    Raises:
      InputError: a setting is invalid, the number of templates is wrong, or a prompt is too long for the text tower.
    """
    config = sed.config
    image_size = image_size or config.image_size
    normalization = normalization or config.normalization
    hashed: dict[str, Any] = {"image_size": image_size, "normalization": normalization, "dtype": dtype, "top_k": top_k}
    _check_settings(hashed | {"matmul_precision": matmul_precision, "class_chunk": class_chunk})
    if fault := _template_fault(config, vocabulary, f"{vocabulary.origin}: "):
        raise InputError(fault)
    parts = {
        "visual": nnx.eval_shape(lambda: ClipConvNext(config.visual, dtype=DTYPES[dtype], rngs=nnx.Rngs(0))),
        "aggregator": nnx.eval_shape(lambda: SedAggregator(config.aggregator, dtype=DTYPES[dtype], rngs=nnx.Rngs(0))),
    }
    text = embed_text(config.text, sed.text, vocabulary)
    weights = {"visual": sed.visual, "aggregator": sed.aggregator, "text": text}
    return Sed(
        weights=jax.tree.map(jnp.asarray, weights),
        num_classes=len(vocabulary.classes),
        image_size=image_size,
        fingerprint=_fingerprint(config, sed.sha256, vocabulary, hashed),
        visual=nnx.graphdef(parts["visual"]),
        aggregator=nnx.graphdef(parts["aggregator"]),
        class_of_concept=vocabulary.class_of_concept,
        normalization=normalization,
        short_side=config.short_side,
        class_chunk=class_chunk,
        top_k=top_k,
        matmul_precision=matmul_precision,
    )


def build(config: Mapping[str, Any], num_classes: int) -> Sed:
    """Builds SED from `config.ovs`.

    Args:
      config: `weights` and `vocabulary`; optionally `templates` (see `load_vocabulary`) and the settings of `make_sed`.
      num_classes: number of classes of the dataset.

    Raises:
      InputError: weights or vocabulary are missing or invalid, the vocabulary does not have `num_classes` classes, or
        a setting is invalid.
    """
    vocabulary = load_vocabulary(config["vocabulary"], num_classes, templates=config.get("templates", ""))
    return make_sed(load_sed(config["weights"]), vocabulary, **_settings(config))


def fingerprint(config: Mapping[str, Any]) -> str:
    """The fingerprint of the model that `build` returns, from the header of the weight file; raises as `build`."""
    weights = SED.load_config(config["weights"])
    settings = {
        "image_size": config.get("image_size") or weights.image_size,
        "normalization": config.get("normalization") or weights.normalization,
        "dtype": config.get("dtype", "float32"),
        "top_k": config.get("top_k", 0),
    }
    vocabulary = load_vocabulary(config["vocabulary"], templates=config.get("templates", ""))
    return _fingerprint(weights, stored_sha256(config["weights"]), vocabulary, settings)


def _fingerprint(weights: SedWeightsConfig, sha256: str, vocabulary: Vocabulary, settings: Mapping[str, Any]) -> str:
    hashed = {
        "model": "sed",
        "vocabulary": vocabulary.sha256,
        "weights": sha256,
        "config": SED.write(weights),
        **settings,
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def faults(config: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the weights and settings of `config.ovs`, from the header of the weight file."""
    found, weights = Faults(), None
    with found.collected():
        _check_settings({key: value for key, value in _settings(config).items() if _is_chosen(value)})
    if fault := missing_weights("config.ovs.weights", config["weights"], SED.kind, source=_SOURCE, otherwise=_WITHOUT):
        return [*found.found, fault]
    with found.collected("config.ovs.weights: "):
        weights = SED.load_config(config["weights"])
    if weights is not None:
        templates = config.get("templates", "")
        with contextlib.suppress(InputError):  # reported by those who check the vocabulary
            vocabulary = load_vocabulary(config["vocabulary"], templates=templates)
            origin = f"config.ovs.templates={templates!r}: " + ("" if templates else f"{vocabulary.origin}: ")
            if fault := _template_fault(weights, vocabulary, origin):
                found.add([fault])
    return found.found


def _is_chosen(value: Any) -> bool:
    """Whether a setting replaces the weights' own, for which 0 and "" stand. Negative ones are out of range."""
    return value > 0 if isinstance(value, int) else bool(value)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _ALLOWED if key in config}


def _check_settings(settings: Mapping[str, Any]) -> None:
    check_choices("config.ovs", settings, {key: _ALLOWED[key] for key in settings})


def _template_fault(config: SedWeightsConfig, vocabulary: Vocabulary, origin: str) -> str | None:
    """What is wrong with the number of templates; `origin`, where they are from, starts the message."""
    if len(vocabulary.templates) == config.aggregator.num_templates:
        return None
    return (
        f"{origin}{len(vocabulary.templates)} prompt templates, but the SED was trained with "
        f"{config.aggregator.num_templates}; set config.ovs.templates to those of its training: 'imagenet80' for "
        "published SEDs, '' for the templates in config.ovs.vocabulary"
    )


def _interpolate(x: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Bilinear interpolation along one axis, equal to torch's `interpolate(align_corners=False)`; float32."""
    position = np.maximum((np.arange(length) + 0.5) * (x.shape[axis] / length) - 0.5, 0)
    low = position.astype(int)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    fraction = np.expand_dims((position - low).astype(np.float32), [a for a in range(x.ndim) if a != axis])
    return x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
