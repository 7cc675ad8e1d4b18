"""CLIP's weight files: both towers, or an image tower alone, with architecture and settings."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from data_pipelines.errors import InputError
from semiovs_jax.augment import IMAGENET_MEAN, IMAGENET_STD
from semiovs_jax.models.clip.convnext import ClipConvNext, ClipConvNextConfig
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.clip.vit import ClipVit, ClipVitConfig
from semiovs_jax.weights.parts import (
    FileKind,
    PartShapes,
    config_from_json,
    config_to_json,
    missing_weights,
    part_shapes,
    read_config,
    weights_kind,
)

# Mean and standard deviation of RGB in 0..1, by which images are normalized. SemiVL normalizes the input of OpenAI's
# CLIP by ImageNet's statistics on VOC, by CLIP's own on Cityscapes.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}

VisualConfig = ClipVitConfig | ClipConvNextConfig

# By the value of "tower" in the JSON of an image tower. A ViT has no such key.
_ARCHITECTURES: dict[str, type[VisualConfig]] = {"vit": ClipVitConfig, "convnext": ClipConvNextConfig}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Architecture and settings of a CLIP.

    Attributes:
      visual: Architecture of the image tower.
      text: Architecture of the text tower, with its tokenizer.
      normalization: Statistics of the training images, a key of `NORMALIZATIONS`.
      logit_scale: Factor of the cosine before the softmax.

    Raises:
      InputError: The towers have different embedding dimensions.
    """

    visual: VisualConfig
    text: ClipTextConfig
    normalization: str = "clip"
    logit_scale: float = 100.0

    def __post_init__(self) -> None:
        check_embed_dims(self.visual, self.text)

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        if not isinstance(self.visual, ClipConvNextConfig):
            return config_to_json(self)
        content = dataclasses.asdict(self)
        content["visual"]["tower"] = "convnext"
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> "ClipConfig":
        """Reads what `to_json` wrote.

        Raises:
          KeyError, TypeError, ValueError: `text` is not valid JSON, or has other fields.
        """
        content = json.loads(text)
        visual = dict(content["visual"])
        architecture = _ARCHITECTURES[visual.pop("tower", "vit")]
        towers = {"visual": read_config(architecture, visual), "text": read_config(ClipTextConfig, content["text"])}
        return cls(**{**content, **towers})


def check_embed_dims(visual: VisualConfig, text: ClipTextConfig) -> None:
    """Raises InputError if the towers have different embedding dimensions."""
    if visual.embed_dim != text.embed_dim:
        raise InputError(
            f"embed_dim is {visual.embed_dim} in the image tower and {text.embed_dim} in the text tower; "
            "take both towers from one model"
        )


@dataclasses.dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Attributes:
      config: Architecture and settings.
      visual: Pure dict of the parameters of `visual_tower(config.visual)`.
      text: Pure dict of the parameters of `ClipText(config.text)`.
      sha256: Digest of the file's tensors.
    """

    config: ClipConfig
    visual: dict[Any, Any]
    text: dict[Any, Any]
    sha256: str


def visual_tower(config: VisualConfig, *, dtype: DTypeLike | None = None, rngs: nnx.Rngs) -> ClipVit | ClipConvNext:
    """The image tower of this architecture; `dtype` and `rngs` as in its class."""
    if isinstance(config, ClipConvNextConfig):
        return ClipConvNext(config, dtype=dtype, rngs=rngs)
    return ClipVit(config, dtype=dtype, rngs=rngs)


def parameter_shapes(config: ClipConfig) -> PartShapes:
    """Shapes of the parameters by tower, "visual" or "text", and "/" path."""
    return part_shapes(
        {
            "visual": lambda: visual_tower(config.visual, rngs=nnx.Rngs(0)),
            "text": lambda: ClipText(config.text, rngs=nnx.Rngs(0)),
        }
    )


def _visual_shapes(config: ClipVitConfig) -> PartShapes:
    return part_shapes({"visual": lambda: ClipVit(config, rngs=nnx.Rngs(0))})


CLIP = FileKind("clip", ClipConfig.from_json, parameter_shapes, ClipConfig.to_json)
CLIP_VISUAL = FileKind("clip_visual", functools.partial(config_from_json, ClipVitConfig), _visual_shapes)


def missing_clip(key: str, name_or_path: str, *, otherwise: str = "") -> str | None:
    """What to do about a CLIP that is missing, as `missing_weights`."""
    source = "fetch a CLIP with a ViT (OpenAI's, open_clip's or Hugging Face's)"
    return missing_weights(key, name_or_path, CLIP.kind, source=source, otherwise=otherwise)


def load_clip(name_or_path: str) -> Clip:
    """Reads both towers; arguments and errors as `FileKind.load`."""
    config, towers, sha256 = CLIP.load(name_or_path)
    return Clip(config, **towers, sha256=sha256)


def load_visual(name_or_path: str) -> tuple[ClipVitConfig, dict[Any, Any]]:
    """Reads a vision transformer of a file of kind "clip_visual" or "clip"; arguments as `FileKind.load`.

    Returns:
      The architecture, and the parameters of its `ClipVit` as a pure dict.

    Raises:
      InputError: As `FileKind.load`, or the image tower is a ConvNeXt.
    """
    if weights_kind(name_or_path) == CLIP.kind:
        clip = load_clip(name_or_path)
        if not isinstance(clip.config.visual, ClipVitConfig):
            raise InputError(
                f"{name_or_path}: holds a CLIP with a ConvNeXt, expected one with a ViT; give another file"
            )
        return clip.config.visual, clip.visual
    config, parts, _ = CLIP_VISUAL.load(name_or_path)
    return config, parts["visual"]


def normalize(image: jax.Array, normalization: str) -> jax.Array:
    """Normalizes RGB in 0..255 by a key of `NORMALIZATIONS`; keeps shape and dtype."""
    mean, std = (jnp.asarray(values, image.dtype) for values in NORMALIZATIONS[normalization])
    return (image / 255 - mean) / std
