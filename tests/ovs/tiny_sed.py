"""A SED of a few thousand random weights, for tests."""

from pathlib import Path

import numpy as np

from semiovs_jax.models.clip.convnext import ClipConvNextConfig
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.sed.aggregator import SedConfig
from semiovs_jax.models.sed.file import SED, SedWeightsConfig, parameter_shapes
from semiovs_jax.weights.keys import unflatten

CONFIG = SedWeightsConfig(
    visual=ClipConvNextConfig(widths=(4, 6, 8, 10), depths=(1, 1, 2, 1), embed_dim=6),
    text=ClipTextConfig(
        vocab_size=259,
        context_length=40,
        width=8,
        num_layers=1,
        num_heads=2,
        embed_dim=6,
        activation="gelu",
        tokenizer="bytes",
    ),
    aggregator=SedConfig(
        num_templates=2,
        width=12,
        decoder_widths=(8, 6, 4),
        level_widths=(8, 6, 4),
        guidance_widths=(4, 3, 2),
        num_heads=2,
        kernel_sizes=(5, 3, 3),
    ),
    image_size=64,
    short_side=0,
    normalization="imagenet",
)


def parts(seed=0, config=CONFIG):
    """Random parameters of the three parts, nested."""
    rng = np.random.default_rng(seed)
    return {
        name: unflatten({path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in flat.items()})
        for name, flat in parameter_shapes(config).items()
    }


def write_sed(path: Path, seed=0, config=CONFIG) -> str:
    """Writes the parts to `path` and returns it."""
    SED.save(path, config, parts(seed, config), {"source": "a test"})
    return str(path)
