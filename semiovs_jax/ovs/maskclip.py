"""MaskCLIP: compares the CLIP embedding of every image patch with the text embeddings of a vocabulary.

Sources: Zhou et al., "Extract Free Dense Labels from CLIP", 2022; google-research/semivl, `model/vlm.py`, whose labels
this module reproduces.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.errors import Faults, InputError
from data_pipelines.images.transforms import resize_image
from semiovs_jax.models.clip.file import CLIP, NORMALIZATIONS, Clip, ClipConfig, load_clip, missing_clip, normalize
from semiovs_jax.models.clip.vit import MASKCLIP, ClipVit, ClipVitConfig
from semiovs_jax.models.layers import inside, resize_bilinear
from semiovs_jax.models.precision import DTYPES, PRECISIONS
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.options import at_least, check_choices
from semiovs_jax.ovs.text import embed_text, mean_over_templates
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary
from semiovs_jax.weights.parts import stored_sha256

_LAYERS: dict[str, Collection[str]] = {"layers": ("", "maskclip")}  # of `config.clip`
_NAMES: dict[str, Collection[str]] = {
    "normalization": NORMALIZATIONS,
    "dtype": DTYPES,
    "matmul_precision": PRECISIONS,
}
_WITHOUT = "train without OVS labels with --config.method.ood=none"


def class_scores(dense: jax.Array, text: jax.Array, concepts_per_class: Sequence[int]) -> jax.Array:
    """Class scores of every patch. The score of a class is the maximum over its concepts.

    Args:
      dense: float [N, h, w, D], embeddings of the patches.
      text: float [C, D], one row per concept, those of class 0 first.
      concepts_per_class: number of rows of each class; the sum is C.

    Returns:
      float [N, h, w, K]. Cosines if `dense` and `text` are unit vectors.
    """
    scores = jnp.einsum("nhwd,cd->nhwc", dense, text, precision=jax.lax.Precision.HIGHEST)
    stops = np.cumsum(concepts_per_class)
    best = [scores[..., stop - count : stop].max(-1) for stop, count in zip(stops, concepts_per_class, strict=True)]
    return jnp.stack(best, axis=-1)


def label_scores(
    scores: jax.Array, label_size: tuple[int, int], *, size: jax.Array | None = None, logit_scale: float = 100.0
) -> PseudoLabel:
    """Resizes class scores and takes the most probable class of each pixel.

    Args:
      scores: float [N, h, w, K].
      label_size: (height, width) of the labels.
      size: int32 [N, 2], (height, width) of each image in the top left of its label; None if it fills the label.
      logit_scale: factor of the scores before the softmax.

    Returns:
      The most probable class of each pixel and its probability. Invalid outside `size`.
    """
    resized = resize_bilinear(scores, label_size, align_corners=False, target_size=size)
    probabilities = jax.nn.softmax(resized * logit_scale, axis=-1)
    label = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    valid = jnp.ones(label.shape, bool) if size is None else inside(size, label_size)
    return PseudoLabel(label, jnp.max(probabilities, axis=-1), valid)


@dataclasses.dataclass(eq=False)
class MaskClip:
    """CLIP's image tower and the text embeddings of a vocabulary, as an OVS (see `base.OVS`).

    Attributes:
      weights: {"visual": parameters of the image tower, "text": float32 [C, D], one row per concept}.
      num_classes: classes of the vocabulary.
      image_size: side of the square input of the tower, in pixels.
      fingerprint: sha256 over vocabulary, weights and settings.
      visual: graph of the image tower.
      concepts_per_class: number of rows of `weights["text"]` of each class.
      normalization: a key of `NORMALIZATIONS`.
      logit_scale: factor of the cosine before the softmax.
      matmul_precision: one of `PRECISIONS`, of the tower's products.
    """

    weights: Any
    num_classes: int
    image_size: int
    fingerprint: str
    visual: nnx.GraphDef
    concepts_per_class: tuple[int, ...]
    normalization: str
    logit_scale: float
    matmul_precision: str = "highest"

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image, uint8 [H, W, 3], to the square input [S, S, 3], with PIL's bilinear filter."""
        return resize_image(image, (self.image_size, self.image_size))

    def scores(self, weights: Any, image: jax.Array) -> jax.Array:
        """Class scores [N, h, w, K] of every patch. `image` is as in `label`."""
        square = (image.shape[0], self.image_size, self.image_size, 3)
        if image.shape != square:
            image = jax.image.resize(image, square, "bilinear")
        tower = nnx.merge(self.visual, weights["visual"])
        with jax.default_matmul_precision(self.matmul_precision):
            dense = tower(normalize(image, self.normalization)).dense
        return class_scores(dense, weights["text"], self.concepts_per_class)

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
        return label_scores(self.scores(weights, image), label_size, size=size, logit_scale=self.logit_scale)


def make_maskclip(
    clip: Clip,
    vocabulary: Vocabulary,
    *,
    image_size: int,
    normalization: str = "",
    dtype: str = "float32",
    matmul_precision: str = "highest",
    section: str = "config.ovs",
) -> MaskClip:
    """Embeds the vocabulary and combines it with the image tower.

    Every synonym is a concept of its own, as in SemiVL: the score of a class is the maximum over its synonyms.

    Args:
      clip: both towers.
      vocabulary: classes and their concepts.
      image_size: side of the square input of the tower, in pixels; at least one patch.
      normalization: a key of `NORMALIZATIONS`; "" for the statistics the tower was trained with.
      dtype: of the image tower's computation, "float32" or "bfloat16".
      matmul_precision: of its products in float32, one of `PRECISIONS`.
      section: the config section of these settings, for error messages.

    Raises:
      InputError: the image tower is not a ViT, a setting is invalid, or a prompt is too long for the text tower.
    """
    normalization = normalization or clip.config.normalization
    vision = _vision(clip.config, section)
    names = {"normalization": normalization, "dtype": dtype, "matmul_precision": matmul_precision}
    check_choices(section, {**names, "image_size": image_size}, {**_NAMES, "image_size": at_least(vision.patch_size)})
    words = vocabulary.split_synonyms()
    settings = {"image_size": image_size, "normalization": normalization, "dtype": dtype}
    text = mean_over_templates(embed_text(clip.config.text, clip.text, words))
    tower = nnx.eval_shape(lambda: ClipVit(vision, dtype=DTYPES[dtype], rngs=nnx.Rngs(0)))
    return MaskClip(
        weights={"visual": jax.tree.map(jnp.asarray, clip.visual), "text": jnp.asarray(text)},
        num_classes=len(words.classes),
        image_size=image_size,
        fingerprint=_fingerprint(clip.config, clip.sha256, words, settings),
        visual=nnx.graphdef(tower),
        concepts_per_class=tuple(np.bincount(words.class_of_concept, minlength=len(words.classes)).tolist()),
        normalization=normalization,
        logit_scale=clip.config.logit_scale,
        matmul_precision=matmul_precision,
    )


def build(config: Mapping[str, Any], num_classes: int) -> MaskClip:
    """Builds MaskCLIP from `config.ovs`.

    Args:
      config: `weights`, `vocabulary` and `image_size`; optionally `templates` (see `load_vocabulary`), `normalization`,
        `dtype` and `matmul_precision` (see `make_maskclip`).
      num_classes: number of classes of the dataset.

    Raises:
      InputError: weights or vocabulary are missing or invalid, the vocabulary does not have `num_classes` classes, or
        a setting is invalid.
    """
    vocabulary = load_vocabulary(config["vocabulary"], num_classes, templates=config.get("templates", ""))
    return make_maskclip(
        load_clip(config["weights"]),
        vocabulary,
        image_size=config["image_size"],
        normalization=config.get("normalization", ""),
        dtype=config.get("dtype", "float32"),
        matmul_precision=config.get("matmul_precision", "highest"),
    )


def fingerprint(config: Mapping[str, Any]) -> str:
    """The fingerprint of the model that `build` returns, from the header of the weight file; raises as `build`."""
    clip = CLIP.load_config(config["weights"])
    settings = {
        "image_size": config["image_size"],
        "normalization": config.get("normalization") or clip.normalization,
        "dtype": config.get("dtype", "float32"),
    }
    words = load_vocabulary(config["vocabulary"], templates=config.get("templates", "")).split_synonyms()
    return _fingerprint(clip, stored_sha256(config["weights"]), words, settings)


def _fingerprint(clip: ClipConfig, sha256: str, words: Vocabulary, settings: Mapping[str, Any]) -> str:
    hashed = {
        "model": "dense_clip",  # the former name: another string would make all cached labels stale
        "vocabulary": words.sha256,
        "weights": sha256,
        "config": clip.to_json(),
        **settings,
    }
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def faults(config: Mapping[str, Any], section: str = "config.ovs", *, image_size: int | None = None) -> list[str]:
    """Everything wrong with the weights and settings of a config section, from the header of the weight file.

    Args:
      config: the section: `config.ovs` or `config.clip`.
      section: its name.
      image_size: `config.data.crop_size` where it, not the section, has the side of the tower's square input.
    """
    found = Faults()
    with found.collected():
        check_choices(section, config, {key: table for key, table in (_NAMES | _LAYERS).items() if config.get(key)})
    weights = f"{section}.weights"
    if fault := missing_clip(weights, config["weights"], otherwise=_WITHOUT if section == "config.ovs" else ""):
        return [*found.found, fault]
    with found.collected(f"{weights}: "):
        patch = _vision(CLIP.load_config(config["weights"]), section).patch_size
        key, size = f"{section}.image_size", config.get("image_size", 0)
        if image_size is not None:
            key, size = "config.data.crop_size", image_size
        if 0 <= size < patch:  # negative ones are out of the config's ranges
            found.add([f"{key} is {size}; choose {patch} or more"])
    return found.found


def _vision(config: ClipConfig, section: str) -> ClipVitConfig:
    if not isinstance(config.visual, ClipVitConfig):
        raise InputError(f"{section}.weights is a CLIP with a ConvNeXt; MaskCLIP needs a CLIP with a ViT")
    return config.visual


def build_maskclip_labeler(config: Mapping[str, Any], num_classes: int, *, image_size: int) -> MaskClip:
    """Builds SemiVL's frozen MaskCLIP, which labels crops inside the train step, from `config.clip`.

    Args:
      config: `weights`, `vocabulary`, `normalization`, `dtype` and `matmul_precision` (see `make_maskclip`), and
        `layers`: "maskclip" for the exact GELU and the epsilon of 1e-6 of MaskCLIP's code, "" for CLIP's own.
      num_classes: number of classes of the dataset.
      image_size: side of the crops, in pixels.

    Raises:
      InputError: as `build`, or `layers` is invalid.
    """
    check_choices("config.clip", config, _LAYERS)
    clip = load_clip(config["weights"])
    if config["layers"]:
        visual: Any = dataclasses.replace(cast(Any, clip.config.visual), **MASKCLIP)
        clip = dataclasses.replace(clip, config=dataclasses.replace(clip.config, visual=visual))
    return make_maskclip(
        clip,
        load_vocabulary(config["vocabulary"], num_classes),
        image_size=image_size,
        normalization=config["normalization"],
        dtype=config["dtype"],
        matmul_precision=config.get("matmul_precision", "highest"),
        section="config.clip",
    )
