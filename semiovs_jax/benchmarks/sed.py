"""Time, memory and FLOPs of labeling one image with SED: python -m semiovs_jax.benchmarks.sed.

Weights are random and of published size, the vocabulary is random and as long as COCO-Stuff's: nothing is fetched. Each
path runs in a process of its own, so that its peak memory is its own. Random weights make no sensible labels; how far
the paths agree on trained ones is measured by `semiovs_jax.benchmarks.sed_agreement`.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from semiovs_jax.models.clip.convnext import ClipConvNext, ClipConvNextConfig
from semiovs_jax.models.sed.aggregator import SedAggregator, SedConfig, unit
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.ovs.sed import Sed, label_probabilities
from semiovs_jax.runtime.command import tune_process

MODELS = {
    "base": (ClipConvNextConfig(), SedConfig()),
    "large": (
        ClipConvNextConfig(widths=(192, 384, 768, 1536), embed_dim=768, head_width=1536),
        SedConfig(level_widths=(768, 384, 192)),
    ),
}

# The paths that are compared: what each changes.
PATHS: dict[str, dict[str, Any]] = {"exact": {}, "fast": {"top_k": 1}}


def random_sed(model: str, num_concepts: int, image_size: int, seed: int = 0) -> Sed:
    """A SED of published size with random weights.

    Args:
      model: a key of `MODELS`.
      num_concepts: concepts of the vocabulary, a class each.
      image_size: side of the square the image tower sees.
      seed: of the weights.
    """
    visual_config, config = MODELS[model]
    make = {
        "visual": lambda: ClipConvNext(visual_config, layer_scale=0.1, rngs=nnx.Rngs(seed)),
        "aggregator": lambda: SedAggregator(config, rngs=nnx.Rngs(seed)),
    }
    parts = {name: nnx.eval_shape(part) for name, part in make.items()}
    weights = {
        name: jax.jit(lambda part=part: nnx.to_pure_dict(nnx.state(part(), nnx.Param)))() for name, part in make.items()
    }
    shape = (num_concepts, config.num_templates, visual_config.embed_dim)
    return Sed(
        weights=weights | {"text": unit(jax.random.normal(jax.random.key(seed), shape))},
        num_classes=num_concepts,
        image_size=image_size,
        fingerprint="",
        visual=nnx.graphdef(parts["visual"]),
        aggregator=nnx.graphdef(parts["aggregator"]),
        class_of_concept=tuple(range(num_concepts)),
        normalization="clip",
        short_side=640,
        class_chunk=0,
        top_k=0,
    )


def flops(sed: Sed) -> float:
    """FLOPs of one image's probabilities as compiled, a multiplication and an addition counted as two.

    The compiler counts the body of a loop once: `sed` must compute all classes at once.
    """
    image = jax.ShapeDtypeStruct((1, sed.image_size, sed.image_size, 3), np.float32)
    cost = jax.jit(sed.probabilities).lower(sed.weights, image).compile().cost_analysis()
    assert cost is not None
    return float(cost["flops"])


def patchwork(side: int, patches: int = 4) -> np.ndarray:
    """An image of `patches` x `patches` random colors, float32 [1, side, side, 3]: pixels agree, as in photographs."""
    colors = np.random.default_rng(0).uniform(0, 255, (patches, patches, 3))
    return np.asarray(jax.image.resize(colors[None], (1, side, side, 3), "nearest"), np.float32)


def measure(sed: Sed, canvas: tuple[int, int], repeats: int) -> dict[str, float]:
    """Labels one image.

    Args:
      sed: the model.
      canvas: height and width of the label.
      repeats: how often, after a first time that is not counted.

    Returns:
      Median seconds and core-seconds of one image, seconds of compilation, this process's peak memory in bytes, and
      how many concepts were kept to the end.
    """

    def run(weights: Any, image: jax.Array) -> tuple[PseudoLabel, jax.Array]:
        probabilities = sed.probabilities(weights, image)
        kept = jnp.count_nonzero(probabilities.max((0, 2, 3)))
        return label_probabilities(probabilities, sed.class_of_concept, canvas), kept

    image = patchwork(sed.image_size)
    start = time.perf_counter()
    label = jax.jit(run).lower(sed.weights, image).compile()
    compilation = time.perf_counter() - start
    _, kept = jax.block_until_ready(label(sed.weights, image))
    times = []
    for _ in range(repeats):
        start, cores = time.perf_counter(), time.process_time()
        jax.block_until_ready(label(sed.weights, image))
        times.append((time.perf_counter() - start, time.process_time() - cores))
    seconds, core_seconds = np.median(times, axis=0)
    return {
        "seconds": float(seconds),
        "core_seconds": float(core_seconds),
        "compilation_seconds": compilation,
        "kept": int(kept),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _in_process(path: str) -> dict[str, float]:
    """`measure` of a path in a process of its own."""
    command = [sys.executable, "-m", "semiovs_jax.benchmarks.sed", *sys.argv[1:], f"--path={path}"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    """Measures the path that is asked for, or all of them and the FLOPs."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    arguments = flags.FLAGS
    if arguments.path:
        sed = random_sed(arguments.model, arguments.concepts, arguments.image_size)
        sed = dataclasses.replace(sed, class_chunk=arguments.class_chunk, **PATHS[arguments.path])
        print(json.dumps(measure(sed, (arguments.height, arguments.width), arguments.repeats)))
        return
    print(f"SED-{arguments.model}, {arguments.image_size} px, {arguments.concepts} concepts", flush=True)
    for path in PATHS:
        found = _in_process(path)
        print(
            f"{path}: {found['seconds']:.2f} s, {found['core_seconds']:.2f} core-seconds an image, "
            f"peak memory {found['peak_bytes'] / 1e9:.2f} GB, {found['kept']} concepts kept, "
            f"compiled in {found['compilation_seconds']:.0f} s",
            flush=True,
        )
    sed = random_sed(arguments.model, arguments.concepts, arguments.image_size)
    print(f"exact: {flops(sed) / 1e12:.3f} TFLOP an image")


if __name__ == "__main__":
    tune_process()
    flags.DEFINE_enum("model", "base", list(MODELS), "Which published size.")
    flags.DEFINE_integer("concepts", 171, "Concepts of the vocabulary.", lower_bound=1)
    flags.DEFINE_integer("image_size", 768, "Side of the square the image tower sees.", lower_bound=32)
    flags.DEFINE_integer("height", 375, "Height of the label.", lower_bound=1)
    flags.DEFINE_integer("width", 500, "Width of the label.", lower_bound=1)
    flags.DEFINE_integer("class_chunk", 9, "Concepts computed at a time.", lower_bound=0)
    flags.DEFINE_integer("repeats", 3, "Timed images.", lower_bound=1)
    flags.DEFINE_enum("path", None, list(PATHS), "Measure only this path and print JSON.")
    app.run(main)
