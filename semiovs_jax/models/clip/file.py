"""A whole CLIP in one file: both towers' weights, and all that has to be known to run them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
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
from semiovs_jax.weights.parts import PartShapes, load_parts, part_shapes, save_parts, weights_kind

KIND = "clip"
VISUAL_KIND = "clip_visual"  # an image tower alone

# Mean and standard deviation of RGB in 0..1 that a tower's images are normalized with. SemiVL feeds ImageNet
# statistics to OpenAI's CLIP on VOC, CLIP's own on Cityscapes.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}

VisualConfig = ClipVitConfig | ClipConvNextConfig

# By the value of "tower" in the JSON of an image tower; that of a ViT has no such key.
_ARCHITECTURES: dict[str, type[VisualConfig]] = {"vit": ClipVitConfig, "convnext": ClipConvNextConfig}


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """What the weights alone do not tell of a CLIP.

    Attributes:
      visual: architecture of the image tower.
      text: architecture of the text tower, its tokenizer among it.
      normalization: a key of `NORMALIZATIONS`, the statistics of the images it was trained on.
      logit_scale: factor of the cosine before the softmax.

    Raises:
      InputError: the towers do not embed into one space.
    """

    visual: VisualConfig
    text: ClipTextConfig
    normalization: str = "clip"
    logit_scale: float = 100.0

    def __post_init__(self) -> None:
        check_embed_dims(self.visual, self.text)

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        content = dataclasses.asdict(self)
        if isinstance(self.visual, ClipConvNextConfig):
            content["visual"]["tower"] = "convnext"
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> "ClipConfig":
        """Reads what `to_json` wrote.

        Raises:
          KeyError, ValueError, TypeError: `text` is no JSON, or holds other fields.
        """
        content = json.loads(text)
        visual = dict(content["visual"])
        architecture = _ARCHITECTURES[visual.pop("tower", "vit")]
        return cls(**{**content, "visual": architecture(**visual), "text": ClipTextConfig(**content["text"])})


def check_embed_dims(visual: VisualConfig, text: ClipTextConfig) -> None:
    """Raises InputError if the towers do not embed into one space."""
    if visual.embed_dim != text.embed_dim:
        raise InputError(
            f"embed_dim is {visual.embed_dim} in the image tower and {text.embed_dim} in the text tower; "
            "take both towers from one model"
        )


@dataclasses.dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Attributes:
      config: its architecture and settings.
      visual: pure dict of the parameters of `visual_tower(config.visual)`.
      text: pure dict of the parameters of `ClipText(config.text)`.
      sha256: digest of the file's tensors.
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
    """Shapes of the parameters by tower, "visual" or "text", and "/" path; nothing is computed."""
    return part_shapes(
        {
            "visual": lambda: visual_tower(config.visual, rngs=nnx.Rngs(0)),
            "text": lambda: ClipText(config.text, rngs=nnx.Rngs(0)),
        }
    )


def save_clip(
    path: str | Path,
    config: ClipConfig,
    visual: Mapping[Any, Any],
    text: Mapping[Any, Any],
    provenance: Mapping[str, str],
) -> None:
    """Writes a file that `load_clip` reads.

    Args:
      path: the .safetensors file to write.
      config: architecture and settings; stored as JSON in the metadata.
      visual: parameters of the image tower, nested or by "/" path.
      text: parameters of the text tower, nested or by "/" path.
      provenance: where the weights come from, added to the metadata.
    """
    save_parts(path, KIND, config.to_json(), {"visual": visual, "text": text}, provenance)


def load_clip(name_or_path: str) -> Clip:
    """Reads both towers, float32 whatever the file's precision.

    Args:
      name_or_path: name of shipped weights or path of a file that `save_clip` wrote.

    Raises:
      InputError: the file is missing, damaged or of another kind, or its tensors are not those of the
        architecture its metadata gives.
    """
    config, towers, sha256 = load_parts(name_or_path, KIND, ClipConfig.from_json, parameter_shapes)
    return Clip(config, towers["visual"], towers["text"], sha256)


def load_visual(name_or_path: str) -> tuple[ClipVitConfig, dict[Any, Any]]:
    """Reads a vision transformer, alone or out of a whole CLIP, float32 whatever the file's precision.

    Args:
      name_or_path: name of shipped weights or path of a file of kind "clip_visual" or "clip".

    Returns:
      The architecture, and the parameters of its `ClipVit` as a pure dict.

    Raises:
      InputError: the file is missing, damaged or of another kind, holds another image tower, or its tensors are not
        those of the architecture its metadata gives.
    """
    if weights_kind(name_or_path) == KIND:
        clip = load_clip(name_or_path)
        if not isinstance(clip.config.visual, ClipVitConfig):
            raise InputError(f"{name_or_path}: holds a CLIP with a ConvNeXt; give one with a ViT")
        return clip.config.visual, clip.visual
    config, parts, _ = load_parts(
        name_or_path,
        VISUAL_KIND,
        lambda text: ClipVitConfig(**json.loads(text)),
        lambda config: part_shapes({"visual": lambda: ClipVit(config, rngs=nnx.Rngs(0))}),
    )
    return config, parts["visual"]


def normalize(image: jax.Array, normalization: str) -> jax.Array:
    """RGB in 0..255 to zero mean and unit variance under the named statistics; shape and dtype are kept."""
    mean, std = (jnp.asarray(values, image.dtype) for values in NORMALIZATIONS[normalization])
    return (image / 255 - mean) / std
