"""SED's weight file: both of CLIP's towers and the aggregator, with architecture and settings."""

import dataclasses
import functools
from typing import Any

from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.clip.convnext import ClipConvNext, ClipConvNextConfig
from semiovs_jax.models.clip.file import check_embed_dims
from semiovs_jax.models.clip.text import ClipText, ClipTextConfig
from semiovs_jax.models.sed.aggregator import SedAggregator, SedConfig
from semiovs_jax.weights.parts import FileKind, PartShapes, config_from_json, part_shapes


@dataclasses.dataclass(frozen=True)
class SedWeightsConfig:
    """Architecture and settings of a SED; the defaults are those of the published models.

    Attributes:
      visual: Architecture of the image tower.
      text: Architecture of the text tower, with its tokenizer.
      aggregator: Architecture of the aggregator.
      image_size: Side of the image tower's square input, in pixels.
      short_side: Images are first resized to this shortest side, in pixels. 0: they are resized to the square at once.
      normalization: Statistics of the training images, a key of `clip.file.NORMALIZATIONS`.

    Raises:
      InputError: The towers have different embedding dimensions, or the aggregator's levels have other widths than
        those of the image tower.
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


@dataclasses.dataclass(frozen=True)
class SedWeights:
    """A loaded SED.

    Attributes:
      config: Architecture and settings.
      visual: Pure dict of the parameters of `ClipConvNext(config.visual)`.
      text: Pure dict of the parameters of `ClipText(config.text)`.
      aggregator: Pure dict of the parameters of `SedAggregator(config.aggregator)`.
      sha256: Digest of the file's tensors.
    """

    config: SedWeightsConfig
    visual: dict[Any, Any]
    text: dict[Any, Any]
    aggregator: dict[Any, Any]
    sha256: str


def parameter_shapes(config: SedWeightsConfig) -> PartShapes:
    """Shapes of the parameters by part, "visual", "text" or "aggregator", and "/" path."""
    return part_shapes(
        {
            "visual": lambda: ClipConvNext(config.visual, rngs=nnx.Rngs(0)),
            "text": lambda: ClipText(config.text, rngs=nnx.Rngs(0)),
            "aggregator": lambda: SedAggregator(config.aggregator, rngs=nnx.Rngs(0)),
        }
    )


SED = FileKind("sed", functools.partial(config_from_json, SedWeightsConfig), parameter_shapes)


def load_sed(name_or_path: str) -> SedWeights:
    """Reads all parts; arguments and errors as `FileKind.load`."""
    config, parts, sha256 = SED.load(name_or_path)
    return SedWeights(config, **parts, sha256=sha256)
