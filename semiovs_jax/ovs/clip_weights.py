"""A whole CLIP in one file: both towers' weights, and all that has to be known to run them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.augment import IMAGENET_MEAN, IMAGENET_STD
from semiovs_jax.convert.keys import Rule, convert, flatten, unflatten
from semiovs_jax.convert.weights import load_weights, save_weights
from semiovs_jax.models.clip_text import ClipText, ClipTextConfig
from semiovs_jax.models.clip_vit import ClipVit, ClipVitConfig

KIND = "clip"

# Mean and standard deviation of RGB in 0..1 that a tower's images are normalized with. SemiVL feeds ImageNet
# statistics to OpenAI's CLIP on VOC, CLIP's own on Cityscapes.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}

_SHIPPED = Path(__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """What the weights alone do not tell of a CLIP.

    Attributes:
      visual: architecture of the image tower.
      text: architecture of the text tower, its tokenizer among it.
      normalization: a key of `NORMALIZATIONS`, the statistics of the images it was trained on.
      logit_scale: factor of the cosine before the softmax.
    """

    visual: ClipVitConfig
    text: ClipTextConfig
    normalization: str = "clip"
    logit_scale: float = 100.0

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ClipConfig":
        """Reads what `to_json` wrote.

        Raises:
          ValueError, TypeError: `text` is no JSON, or holds other fields.
        """
        content = json.loads(text)
        return cls(
            **{
                **content,
                "visual": ClipVitConfig(**content["visual"]),
                "text": ClipTextConfig(**content["text"]),
            }
        )


@dataclasses.dataclass(frozen=True)
class Clip:
    """A loaded CLIP.

    Attributes:
      config: its architecture and settings.
      visual: pure dict of the parameters of `ClipVit(config.visual)`.
      text: pure dict of the parameters of `ClipText(config.text)`.
      sha256: digest of the file's tensors.
    """

    config: ClipConfig
    visual: dict[Any, Any]
    text: dict[Any, Any]
    sha256: str


def parameter_shapes(config: ClipConfig) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of the parameters by tower, "visual" or "text", and "/" path; nothing is computed."""
    towers = {
        "visual": nnx.eval_shape(lambda: ClipVit(config.visual, rngs=nnx.Rngs(0))),
        "text": nnx.eval_shape(lambda: ClipText(config.text, rngs=nnx.Rngs(0))),
    }
    return {name: flatten(nnx.to_pure_dict(nnx.state(tower, nnx.Param))) for name, tower in towers.items()}


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
    tensors = {f"visual/{k}": v for k, v in flatten(visual).items()}
    tensors |= {f"text/{k}": v for k, v in flatten(text).items()}
    save_weights(path, tensors, {**provenance, "kind": KIND, "config": config.to_json()})


def weights_path(name_or_path: str) -> Path:
    """The file of shipped weights ("shapes_clip"), or the path itself."""
    shipped = _SHIPPED / f"{name_or_path}.safetensors"
    return shipped if shipped.is_file() else Path(name_or_path)


def load_clip(name_or_path: str) -> Clip:
    """Reads both towers, float32 whatever the file's precision.

    Args:
      name_or_path: name of shipped weights or path of a file that `save_clip` wrote.

    Raises:
      InputError: the file is missing, damaged or of another kind, or its tensors are not those of the
        architecture its metadata gives.
    """
    path = weights_path(name_or_path)
    tensors, metadata = load_weights(path)
    if metadata.get("kind") != KIND:
        raise InputError(
            f"{path}: holds weights of kind {metadata.get('kind')!r}, not of a CLIP; make them with "
            f"`python -m semiovs_jax.convert SOURCE OUT --kind={KIND}`"
        )
    try:
        config = ClipConfig.from_json(metadata["config"])
        shapes = parameter_shapes(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its metadata gives no CLIP architecture this version knows ({error}); convert the weights again"
        ) from error
    target = {f"{tower}/{k}": shape for tower, flat in shapes.items() for k, shape in flat.items()}
    values = convert(tensors, [Rule(r"(.*)", r"\1")], target, name=str(path)).values
    towers = unflatten(values)
    return Clip(config, towers["visual"], towers["text"], metadata["sha256"])
