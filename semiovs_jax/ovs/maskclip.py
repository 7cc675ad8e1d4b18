"""Dense CLIP: segmentation by comparing every patch's CLIP embedding with the words of a vocabulary.

Sources: Zhou et al., "Extract Free Dense Labels from CLIP", 2022 (MaskCLIP); google-research/semivl,
`model/vlm.py`, whose labels these are.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from data_pipelines.images.transforms import resize_image
from semiovs_jax.models.clip.file import NORMALIZATIONS, Clip, load_clip, normalize
from semiovs_jax.models.clip.vit import MASKCLIP, ClipVit, ClipVitConfig
from semiovs_jax.models.layers import DTYPES, inside, resize_bilinear
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.text import embed_text, mean_over_templates
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary


def class_scores(dense: jax.Array, text: jax.Array, concepts_per_class: Sequence[int]) -> jax.Array:
    """Scores of the classes at feature resolution: the best of each class's concepts.

    Args:
      dense: float [N, h, w, D], embeddings of the patches.
      text: float [C, D], one row per concept, those of class 0 first.
      concepts_per_class: how many rows belong to each class; they sum to C.

    Returns:
      float [N, h, w, K], cosines if both are unit vectors.
    """
    scores = jnp.einsum("nhwd,cd->nhwc", dense, text, precision=jax.lax.Precision.HIGHEST)
    stops = np.cumsum(concepts_per_class)
    best = [scores[..., stop - count : stop].max(-1) for stop, count in zip(stops, concepts_per_class, strict=True)]
    return jnp.stack(best, axis=-1)


def label_scores(
    scores: jax.Array, canvas: tuple[int, int], *, size: jax.Array | None = None, logit_scale: float = 100.0
) -> PseudoLabel:
    """Class scores to labels at full resolution.

    Args:
      scores: float [N, h, w, K].
      canvas: height and width of the labels.
      size: int32 [N, 2], the part of the canvas in its top left that each image fills; all of it if None.
      logit_scale: factor of the scores before the softmax.

    Returns:
      The most probable class of each pixel and its probability; invalid outside `size`.
    """
    resized = resize_bilinear(scores, canvas, align_corners=False, target_size=size)
    probabilities = jax.nn.softmax(resized * logit_scale, axis=-1)
    label = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    valid = jnp.ones(label.shape, bool) if size is None else inside(size, canvas)
    return PseudoLabel(label, jnp.max(probabilities, axis=-1), valid)


@dataclasses.dataclass(eq=False)
class DenseClip:
    """CLIP's image tower and the embedded vocabulary, as an OVS (see `base.OVS`).

    Attributes:
      weights: {"visual": parameters of the image tower, "text": float32 [C, D], one row per concept}.
      num_classes: classes of the vocabulary.
      image_size: side of the square the tower sees.
      fingerprint: sha256 over vocabulary, weights and settings.
      visual: structure of the image tower.
      concepts_per_class: rows of the text embedding that belong to each class.
      normalization: a key of `NORMALIZATIONS`.
      logit_scale: factor of the cosine before the softmax.
    """

    weights: Any
    num_classes: int
    image_size: int
    fingerprint: str
    visual: nnx.GraphDef
    concepts_per_class: tuple[int, ...]
    normalization: str
    logit_scale: float

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image, uint8 [H, W, 3], to the square [S, S, 3] the tower sees, with PIL's bilinear filter."""
        return resize_image(image, (self.image_size, self.image_size))

    def scores(self, weights: Any, image: jax.Array) -> jax.Array:
        """Class scores [N, h, w, K] at feature resolution, of `image` as in `label`."""
        square = (image.shape[0], self.image_size, self.image_size, 3)
        if image.shape != square:
            image = jax.image.resize(image, square, "bilinear")
        tower = nnx.merge(self.visual, weights["visual"])
        dense = tower(normalize(image, self.normalization)).dense
        return class_scores(dense, weights["text"], self.concepts_per_class)

    def label(
        self, weights: Any, image: jax.Array, *, canvas: tuple[int, int], size: jax.Array | None = None
    ) -> PseudoLabel:
        """Labels images; a pure function of `weights` and `image`.

        Args:
          weights: this model's `weights`.
          image: float [N, S, S, 3], RGB in 0..255, the whole image in the square the tower sees; other sizes
            are resized to it.
          canvas: (height, width) of the labels.
          size: int32 [N, 2], each image's (height, width) in the canvas's top left; the whole canvas if None.

        Returns:
          Labels on the canvas, invalid outside `size`.
        """
        return label_scores(self.scores(weights, image), canvas, size=size, logit_scale=self.logit_scale)


def make_dense_clip(
    clip: Clip, vocabulary: Vocabulary, *, image_size: int, normalization: str = "", dtype: str = "float32"
) -> DenseClip:
    """Embeds the vocabulary and puts it beside the image tower.

    Every synonym is a concept of its own, as in SemiVL: a class scores as the best of its words.

    Args:
      clip: both towers.
      vocabulary: classes and their words.
      image_size: side of the square the tower sees, in pixels.
      normalization: a key of `NORMALIZATIONS`; "" for the statistics the tower was trained with.
      dtype: of the image tower's computation, "float32" or "bfloat16".

    Raises:
      InputError: an image tower that is no ViT, unknown normalization or dtype, an image smaller than a patch,
        or a prompt the text tower cannot read.
    """
    normalization = normalization or clip.config.normalization
    for key, value, known in (("normalization", normalization, NORMALIZATIONS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise InputError(f"config.ovs.{key} is {value!r}; choose one of {', '.join(sorted(known))}")
    vision = clip.config.visual
    if not isinstance(vision, ClipVitConfig):
        raise InputError("config.ovs.weights is a CLIP with a ConvNeXt; dense CLIP reads one with a ViT")
    if image_size < vision.patch_size:
        raise InputError(f"config.ovs.image_size is {image_size}, less than a patch of {vision.patch_size} pixels")
    words = vocabulary.split_synonyms()
    settings = {
        "model": "dense_clip",
        "vocabulary": words.sha256,
        "weights": clip.sha256,
        "config": clip.config.to_json(),
        "image_size": image_size,
        "normalization": normalization,
        "dtype": dtype,
    }
    text = mean_over_templates(embed_text(clip.config.text, clip.text, words))
    tower = nnx.eval_shape(lambda: ClipVit(vision, dtype=DTYPES[dtype], rngs=nnx.Rngs(0)))
    return DenseClip(
        weights={"visual": jax.tree.map(jnp.asarray, clip.visual), "text": jnp.asarray(text)},
        num_classes=len(words.classes),
        image_size=image_size,
        fingerprint=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        visual=nnx.graphdef(tower),
        concepts_per_class=tuple(np.bincount(words.class_of_concept, minlength=len(words.classes)).tolist()),
        normalization=normalization,
        logit_scale=clip.config.logit_scale,
    )


def build_dense_clip(config: Mapping[str, Any], num_classes: int | None = None) -> DenseClip:
    """Builds dense CLIP from `config.ovs`.

    Args:
      config: `weights`, `vocabulary` and `image_size`; optionally `templates` (of `load_vocabulary`), `normalization`
        and `dtype`, as in `make_dense_clip`.
      num_classes: classes of the dataset; None accepts any.

    Raises:
      InputError: weights or vocabulary are missing or unusable, or the vocabulary has other than
        `num_classes` classes.
    """
    vocabulary = load_vocabulary(config["vocabulary"], num_classes, templates=config.get("templates", ""))
    return make_dense_clip(
        load_clip(config["weights"]),
        vocabulary,
        image_size=config["image_size"],
        normalization=config.get("normalization", ""),
        dtype=config.get("dtype", "float32"),
    )


def build_label_maker(config: Mapping[str, Any], num_classes: int, *, image_size: int) -> DenseClip:
    """Builds SemiVL's frozen dense CLIP, which labels crops inside the train step, from `config.clip`.

    Args:
      config: `weights`, `vocabulary`, `normalization` and `dtype`, as in `make_dense_clip`, and `layers`: "maskclip"
        for MaskCLIP's exact GELU and epsilon of 1e-6 in place of CLIP's own, which "" keeps.
      num_classes: classes of the dataset.
      image_size: side of the crops, in pixels.

    Raises:
      InputError: as `build_dense_clip`, or unknown `layers`.
    """
    clip = load_clip(config["weights"])
    if config["layers"] not in ("", "maskclip"):
        raise InputError(f"config.clip.layers is {config['layers']!r}; choose 'maskclip', or '' for CLIP's own")
    if config["layers"]:
        visual: Any = dataclasses.replace(cast(Any, clip.config.visual), **MASKCLIP)
        clip = dataclasses.replace(clip, config=dataclasses.replace(clip.config, visual=visual))
    vocabulary = load_vocabulary(config["vocabulary"], num_classes)
    return make_dense_clip(
        clip, vocabulary, image_size=image_size, normalization=config["normalization"], dtype=config["dtype"]
    )
