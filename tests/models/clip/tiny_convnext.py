"""State dicts of a tiny open_clip ConvNeXt CLIP, under every spelling of its names."""

import re

import numpy as np

from semiovs_jax.models.clip.convnext import ClipConvNextConfig
from semiovs_jax.models.clip.text import ClipTextConfig

VISUAL = ClipConvNextConfig(widths=(4, 6, 8, 10), depths=(1, 1, 3, 1), embed_dim=5)
TEXT = ClipTextConfig(
    vocab_size=9, context_length=6, width=64, num_layers=1, num_heads=1, embed_dim=5, activation="gelu"
)


def tensors(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {prefix + name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def weight_and_bias(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def visual(config: ClipConvNextConfig = VISUAL, prefix: str = "") -> dict[str, np.ndarray]:
    """The image tower under the names that open_clip has with timm 0.8, as SED."""
    C = config.widths
    shapes = weight_and_bias("visual.trunk.stem.0", C[0], 3, 4, 4) | weight_and_bias("visual.trunk.stem.1", C[0])
    for i, depth in enumerate(config.depths):
        stage = f"visual.trunk.stages.{i}"
        if i:
            shapes |= weight_and_bias(f"{stage}.downsample.0", C[i - 1])
            shapes |= weight_and_bias(f"{stage}.downsample.1", C[i], C[i - 1], 2, 2)
        for block in (f"{stage}.blocks.{j}" for j in range(depth)):
            shapes |= {f"{block}.gamma": (C[i],)}
            shapes |= weight_and_bias(f"{block}.conv_dw", C[i], 1, 7, 7) | weight_and_bias(f"{block}.norm", C[i])
            shapes |= weight_and_bias(f"{block}.mlp.fc1", 4 * C[i], C[i])
            shapes |= weight_and_bias(f"{block}.mlp.fc2", C[i], 4 * C[i])
    shapes |= weight_and_bias("visual.trunk.head.norm", C[-1])
    if config.head_width:
        shapes |= weight_and_bias("visual.head.mlp.fc1", config.head_width, C[-1])
        shapes |= {"visual.head.mlp.fc2.weight": (config.embed_dim, config.head_width)}
    else:
        shapes |= {"visual.head.proj.weight": (config.embed_dim, C[-1])}
    return tensors(shapes, prefix)


def text(prefix: str = "") -> dict[str, np.ndarray]:
    """The text tower and what lies beside it."""
    D = TEXT.width
    block = "transformer.resblocks.0"
    shapes = {
        "token_embedding.weight": (TEXT.vocab_size, D),
        "positional_embedding": (TEXT.context_length, D),
        "text_projection": (D, TEXT.embed_dim),
        "logit_scale": (),
        f"{block}.attn.in_proj_weight": (3 * D, D),
        f"{block}.attn.in_proj_bias": (3 * D,),
        **weight_and_bias(f"{block}.attn.out_proj", D, D),
        **weight_and_bias(f"{block}.mlp.c_fc", 4 * D, D),
        **weight_and_bias(f"{block}.mlp.c_proj", D, 4 * D),
        **weight_and_bias(f"{block}.ln_1", D),
        **weight_and_bias(f"{block}.ln_2", D),
        **weight_and_bias("ln_final", D),
    }
    return tensors(shapes, prefix)


def by_authors(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tower under the names of ConvNeXt's authors."""
    table = {
        r"trunk\.stem\.": "trunk.downsample_layers.0.",
        r"stages\.(\d+)\.downsample\.": r"downsample_layers.\1.",
        r"\.blocks\.": ".",
        r"conv_dw": "dwconv",
        r"mlp\.fc(\d\.\w+)$": r"pwconv\1",
        r"trunk\.head\.norm": "trunk.norm",
    }
    return _renamed(source, table)


def normalized_before_pooling(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tower under timm's names for a head that normalizes first."""
    return _renamed(source, {r"trunk\.head\.norm": "trunk.norm_pre"})


def _renamed(source: dict[str, np.ndarray], table: dict[str, str]) -> dict[str, np.ndarray]:
    result = {}
    for key, value in source.items():
        for pattern, name in table.items():
            key = key if "visual.head" in key else re.sub(pattern, name, key)
        result[key] = value
    return result
