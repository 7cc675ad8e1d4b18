"""A whole SED in one file: both of CLIP's towers, the aggregator, and all that has to be known to run them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNext, ClipConvNextConfig
from semiovs_jax.models.clip.file import check_embed_dims
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.sed.aggregator import SedAggregator, SedConfig
from semiovs_jax.weights.parts import PartShapes, load_parts, part_shapes, save_parts

KIND = "sed"


@dataclasses.dataclass(frozen=True)
class SedWeightsConfig:
    """What the weights alone do not tell of a SED; the defaults are those of the published models.

    Attributes:
      visual: architecture of the image tower.
      text: architecture of the text tower, its tokenizer among it.
      aggregator: architecture of the aggregator.
      image_size: side of the square the image tower sees, in pixels.
      short_side: images are first resized to this shortest side, in pixels; 0: straight to the square.
      normalization: a key of `NORMALIZATIONS`, the statistics of the images it was trained on.

    Raises:
      InputError: the towers do not embed into one space, or the aggregator reads other levels than the image
        tower has.
    """

    visual: ClipConvNextConfig
    text: ClipTextConfig
    aggregator: SedConfig
    image_size: int = 768
    short_side: int = 640
    normalization: str = "clip"

    def __post_init__(self) -> None:
        check_embed_dims(self.visual, self.text)
        levels = self.visual.widths[-2::-1]
        if self.aggregator.level_widths != levels:
            raise InputError(
                f"the aggregator is guided by levels of {self.aggregator.level_widths} channels, the image tower "
                f"has {levels}; take both from one model"
            )

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "SedWeightsConfig":
        """Reads what `to_json` wrote.

        Raises:
          KeyError, ValueError, TypeError: `text` is no JSON, or holds other fields.
        """
        content = json.loads(text)
        parts = {"visual": ClipConvNextConfig, "text": ClipTextConfig, "aggregator": SedConfig}
        return cls(**{**content, **{name: part(**content[name]) for name, part in parts.items()}})


@dataclasses.dataclass(frozen=True)
class SedWeights:
    """A loaded SED.

    Attributes:
      config: its architecture and settings.
      visual: pure dict of the parameters of `ClipConvNext(config.visual)`.
      text: pure dict of the parameters of `ClipText(config.text)`.
      aggregator: pure dict of the parameters of `SedAggregator(config.aggregator)`.
      sha256: digest of the file's tensors.
    """

    config: SedWeightsConfig
    visual: dict[Any, Any]
    text: dict[Any, Any]
    aggregator: dict[Any, Any]
    sha256: str


def parameter_shapes(config: SedWeightsConfig) -> PartShapes:
    """Shapes of the parameters by part, "visual", "text" or "aggregator", and "/" path; nothing is computed."""
    return part_shapes(
        {
            "visual": lambda: ClipConvNext(config.visual, rngs=nnx.Rngs(0)),
            "text": lambda: ClipText(config.text, rngs=nnx.Rngs(0)),
            "aggregator": lambda: SedAggregator(config.aggregator, rngs=nnx.Rngs(0)),
        }
    )


def save_sed(
    path: str | Path,
    config: SedWeightsConfig,
    visual: Mapping[Any, Any],
    text: Mapping[Any, Any],
    aggregator: Mapping[Any, Any],
    provenance: Mapping[str, str],
) -> None:
    """Writes a file that `load_sed` reads.

    Args:
      path: the .safetensors file to write.
      config: architecture and settings; stored as JSON in the metadata.
      visual: parameters of the image tower, nested or by "/" path.
      text: parameters of the text tower, nested or by "/" path.
      aggregator: parameters of the aggregator, nested or by "/" path.
      provenance: where the weights come from, added to the metadata.
    """
    parts = {"visual": visual, "text": text, "aggregator": aggregator}
    save_parts(path, KIND, config.to_json(), parts, provenance)


def load_sed(name_or_path: str) -> SedWeights:
    """Reads all parts, float32 whatever the file's precision.

    Args:
      name_or_path: name of shipped weights or path of a file that `save_sed` wrote.

    Raises:
      InputError: the file is missing, damaged or of another kind, or its tensors are not those of the
        architecture its metadata gives.
    """
    config, parts, sha256 = load_parts(name_or_path, KIND, SedWeightsConfig.from_json, parameter_shapes)
    return SedWeights(config, **parts, sha256=sha256)
