"""SED as an OVS: every pixel of a ConvNeXt CLIP compared with every prompt, refined by the aggregator.

Sources: Xie et al., "SED: A Simple Encoder-Decoder for Open-Vocabulary Semantic Segmentation", 2024; SemiOVS's
`generate_pseudo_label_via_ovs` (its `inference.py` and SED's `sed_model.py`), whose labels these are. The
reference throws the probability away; here it is the label's confidence.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from data_pipelines.images.transforms import resize_image
from semiovs_jax.models.clip.convnext import ClipConvNext
from semiovs_jax.models.clip.file import NORMALIZATIONS, normalize
from semiovs_jax.models.layers import DTYPES, inside, resize_bilinear
from semiovs_jax.models.sed.aggregator import SedAggregator
from semiovs_jax.models.sed.file import SED, SedWeights, load_sed
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.text import embed_text
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary

_STRIDE = 32  # of the image tower's last level
_LONGEST_OVER_SHORT = 4  # INPUT.MAX_SIZE_TEST 2560 over MIN_SIZE_TEST 640


def label_probabilities(
    probabilities: jax.Array,
    class_of_concept: Sequence[int],
    canvas: tuple[int, int],
    *,
    size: jax.Array | None = None,
) -> PseudoLabel:
    """Probabilities of concepts to labels at full resolution.

    Probabilities, not logits, are resized; a class is as probable as the best of its concepts. Concepts pass one
    by one: memory does not grow with the vocabulary.

    Args:
      probabilities: float [N, T, h, w], independent of each other, in 0..1.
      class_of_concept: the class of each concept, ascending, so that the lowest class wins a tie.
      canvas: height and width of the labels.
      size: int32 [N, 2], the part of the canvas in its top left that each image fills; all of it if None.

    Returns:
      The most probable class of each pixel and its probability; invalid outside `size`.
    """

    def compete(
        best: tuple[jax.Array, jax.Array], concept: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        confidence, label = best
        plane, class_index = concept
        plane = resize_bilinear(plane[..., None], canvas, align_corners=False, target_size=size)[..., 0]
        wins = plane > confidence
        return (jnp.where(wins, plane, confidence), jnp.where(wins, class_index, label)), None

    shape = (len(probabilities), *canvas)
    nothing = jnp.full(shape, -1, probabilities.dtype), jnp.zeros(shape, jnp.int32)
    concepts = jnp.moveaxis(probabilities, 1, 0), jnp.asarray(class_of_concept, jnp.int32)
    (confidence, label), _ = jax.lax.scan(compete, nothing, concepts)
    valid = jnp.ones(shape, bool) if size is None else inside(size, canvas)
    return PseudoLabel(label, confidence, valid)


@dataclasses.dataclass(eq=False)
class Sed:
    """SED and the embedded vocabulary, as an OVS (see `base.OVS`).

    Attributes:
      weights: {"visual", "aggregator": parameters, "text": float32 [T, P, D], T concepts in P templates}.
      num_classes: classes of the vocabulary.
      image_size: side of the square the image tower sees, in pixels.
      fingerprint: sha256 over vocabulary, weights and settings.
      visual: structure of the image tower.
      aggregator: structure of the aggregator.
      class_of_concept: the class of each concept, ascending.
      normalization: a key of `NORMALIZATIONS`.
      short_side: images are first resized to this shortest side; 0: straight to the square.
      class_chunk: concepts the aggregator computes at a time, which bounds memory; 0 for all.
      top_k: concepts a pixel may keep alive on the fast path (`SedAggregator`); 0 for the exact path.
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

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Makes an image the square the tower sees, as the reference does in two steps.

        PIL's bilinear filter, antialiased and rounded to levels, takes the image to the short side; plain bilinear
        interpolation stretches that to the square.

        Args:
          image: uint8 [H, W, 3], RGB.

        Returns:
          float32 [S, S, 3] in 0..255; uint8 if there is no short side and PIL makes the square itself.
        """
        if not self.short_side:
            return resize_image(image, (self.image_size, self.image_size))
        height, width = image.shape[:2]
        scale = self.short_side / min(height, width)
        scale = min(scale, _LONGEST_OVER_SHORT * self.short_side / max(height, width))
        resized = resize_image(image, (int(height * scale + 0.5), int(width * scale + 0.5)))
        return _interpolate(_interpolate(resized, self.image_size, 0), self.image_size, 1)

    def probabilities(self, weights: Any, image: jax.Array) -> jax.Array:
        """Probabilities of concepts, [N, T, S / 4, S / 4], of `image` as in `label`; 0 for what was pruned."""
        side = self.image_size
        if image.shape[1:3] != (side, side):
            image = resize_bilinear(image, (side, side), align_corners=False)
        features = nnx.merge(self.visual, weights["visual"])(normalize(image, self.normalization))
        aggregator = nnx.merge(self.aggregator, weights["aggregator"])
        guides = features.levels[-2::-1]
        found = aggregator(features.dense, weights["text"], guides, class_chunk=self.class_chunk, top_k=self.top_k)
        return jax.nn.sigmoid(found.mask)

    def label(
        self, weights: Any, image: jax.Array, *, canvas: tuple[int, int], size: jax.Array | None = None
    ) -> PseudoLabel:
        """Labels images; a pure function of `weights` and `image`.

        Args:
          weights: this model's `weights`.
          image: float [N, S, S, 3], RGB in 0..255, whole images made square by `prepare`; other sizes are resized
            on device.
          canvas: (height, width) of the labels.
          size: int32 [N, 2], each image's (height, width) in the canvas's top left; the whole canvas if None.

        Returns:
          Labels on the canvas, invalid outside `size`.
        """
        return label_probabilities(self.probabilities(weights, image), self.class_of_concept, canvas, size=size)


def make_sed(
    sed: SedWeights,
    vocabulary: Vocabulary,
    *,
    image_size: int = 0,
    normalization: str = "",
    dtype: str = "float32",
    class_chunk: int = 0,
    top_k: int = 0,
) -> Sed:
    """Embeds the vocabulary, template by template, and puts it beside image tower and aggregator.

    Args:
      sed: all weights.
      vocabulary: classes, their concepts, and as many templates as the aggregator has channels for, in the order it
        was trained with.
      image_size: side of the square the image tower sees, in pixels; 0 for the weights' own.
      normalization: a key of `NORMALIZATIONS`; "" for the statistics the tower was trained with.
      dtype: of the computation, "float32" or "bfloat16".
      class_chunk: concepts that are computed at a time; 0 for all.
      top_k: concepts a pixel may keep alive on the fast path; 0 for the exact path.

    Raises:
      InputError: a value that cannot be used, another number of templates, or a prompt the text tower cannot read.
    """
    config = sed.config
    image_size = image_size or config.image_size
    normalization = normalization or config.normalization
    for key, value, known in (("normalization", normalization, NORMALIZATIONS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise InputError(f"config.ovs.{key} is {value!r}; choose one of {', '.join(sorted(known))}")
    if image_size % _STRIDE:
        raise InputError(f"config.ovs.image_size is {image_size}; SED needs a multiple of {_STRIDE}")
    for key, count in (("class_chunk", class_chunk), ("top_k", top_k)):
        if count < 0:
            raise InputError(f"config.ovs.{key} is {count}; set it to 0 or more")
    if len(vocabulary.templates) != config.aggregator.num_templates:
        raise InputError(
            f"{vocabulary.origin}: {len(vocabulary.templates)} prompt templates, but the weights were trained with "
            f"{config.aggregator.num_templates}; set config.ovs.templates (published SEDs: 'imagenet80')"
        )
    settings = {
        "model": "sed",
        "vocabulary": vocabulary.sha256,
        "weights": sed.sha256,
        "config": SED.write(config),
        "image_size": image_size,
        "normalization": normalization,
        "dtype": dtype,
        "top_k": top_k,
    }
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
        fingerprint=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        visual=nnx.graphdef(parts["visual"]),
        aggregator=nnx.graphdef(parts["aggregator"]),
        class_of_concept=vocabulary.class_of_concept,
        normalization=normalization,
        short_side=config.short_side,
        class_chunk=class_chunk,
        top_k=top_k,
    )


def build_sed(config: Mapping[str, Any], num_classes: int | None = None) -> Sed:
    """Builds SED from `config.ovs`.

    Args:
      config: `weights` and `vocabulary`; optionally `templates` (of `load_vocabulary`) and the settings of `make_sed`.
      num_classes: classes of the dataset; None accepts any.

    Raises:
      InputError: weights or vocabulary are missing or unusable, or the vocabulary has other than
        `num_classes` classes.
    """
    vocabulary = load_vocabulary(config["vocabulary"], num_classes, templates=config.get("templates", ""))
    settings = ("image_size", "normalization", "dtype", "class_chunk", "top_k")
    return make_sed(load_sed(config["weights"]), vocabulary, **{key: config[key] for key in settings if key in config})


def _interpolate(x: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Bilinear interpolation along one axis as torch's `interpolate(align_corners=False)`, float32."""
    position = np.maximum((np.arange(length) + 0.5) * (x.shape[axis] / length) - 0.5, 0)
    low = position.astype(int)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    fraction = np.expand_dims((position - low).astype(np.float32), [a for a in range(x.ndim) if a != axis])
    return x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
