"""A CLIP of a few thousand random weights, and a vocabulary file, for tests."""

import json
from pathlib import Path

import numpy as np

from semiovs_jax.models.clip.file import CLIP, ClipConfig, parameter_shapes
from semiovs_jax.models.clip.text import ClipTextConfig
from semiovs_jax.models.clip.vit import ClipVitConfig
from semiovs_jax.weights.keys import unflatten

CONFIG = ClipConfig(
    visual=ClipVitConfig(patch_size=8, width=16, num_layers=2, num_heads=2, embed_dim=6, image_size=(32, 32)),
    text=ClipTextConfig(
        vocab_size=259, context_length=40, width=8, num_layers=1, num_heads=2, embed_dim=6, tokenizer="bytes"
    ),
    logit_scale=20.0,
)
CLASSES = {"background": ["sky", ["grass", "lawn"]], "cat": [["cat", "kitten"]], "dog": ["dog", "puppy"]}


def towers(seed=0, config=CONFIG):
    """Random parameters of both towers, nested."""
    rng = np.random.default_rng(seed)
    return {
        name: unflatten({path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in flat.items()})
        for name, flat in parameter_shapes(config).items()
    }


def write_clip(path: Path, seed=0, config=CONFIG) -> str:
    """Writes the towers to `path` and returns it."""
    CLIP.save(path, config, towers(seed, config), {"source": "a test"})
    return str(path)


def write_vocabulary(path: Path, classes=None) -> str:
    """Writes a vocabulary of `classes` ({name: concepts}) to `path` and returns it."""
    entries = [{"name": name, "concepts": concepts} for name, concepts in (classes or CLASSES).items()]
    content = {"name": path.stem, "source": "a test", "templates": ["a photo of a {}"], "classes": entries}
    path.write_text(json.dumps(content))
    return str(path)
