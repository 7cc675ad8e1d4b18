"""Measures time, memory and FLOPs of labeling one image with SED: python -m semiovs_jax.benchmarks.sed.

Weights are random and of published size. The text embeddings are random, as many as COCO-Stuff has classes. Nothing is
downloaded. Each path runs in its own process, which gives its peak memory. Labels of random weights are meaningless;
`semiovs_jax.benchmarks.sed_agreement` compares the labels of the paths with trained weights.
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

# The settings of each compared path.
PATHS: dict[str, dict[str, Any]] = {"exact": {}, "fast": {"top_k": 1}}


def random_sed(model: str, num_concepts: int, image_size: int, seed: int = 0) -> Sed:
    """A SED of published size with random weights.

    Args:
      model: a key of `MODELS`.
      num_concepts: number of concepts, each a class of its own.
      image_size: side of the square input of the image tower, in pixels.
      seed: seed of the weights.
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
    """FLOPs of the compiled probabilities of one image. A multiplication with an addition counts as two.

    The compiler counts the body of a loop once, so `sed` must compute all concepts at once (`class_chunk` 0).
    """
    image = jax.ShapeDtypeStruct((1, sed.image_size, sed.image_size, 3), np.float32)
    cost = jax.jit(sed.probabilities).lower(sed.weights, image).compile().cost_analysis()
    assert cost is not None
    return float(cost["flops"])


def patchwork(side: int, patches: int = 4) -> np.ndarray:
    """An image of `patches` x `patches` random colors, float32 [1, side, side, 3]: smooth areas, as in photographs."""
    colors = np.random.default_rng(0).uniform(0, 255, (patches, patches, 3))
    return np.asarray(jax.image.resize(colors[None], (1, side, side, 3), "nearest"), np.float32)


def measure(sed: Sed, label_size: tuple[int, int], repeats: int) -> dict[str, float]:
    """Measures the labeling of one image.

    Args:
      sed: the model.
      label_size: (height, width) of the label.
      repeats: number of timed runs, after one that is not timed.

    Returns:
      Median seconds and core-seconds of one image, seconds of compilation, peak memory of this process in bytes, and
      the number of concepts that were not pruned.
    """

    def run(weights: Any, image: jax.Array) -> tuple[PseudoLabel, jax.Array]:
        probabilities = sed.probabilities(weights, image)
        kept = jnp.count_nonzero(probabilities.max((0, 2, 3)))
        return label_probabilities(probabilities, sed.class_of_concept, label_size), kept

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
    """Measures a path in a new process."""
    command = [sys.executable, "-m", "semiovs_jax.benchmarks.sed", *sys.argv[1:], f"--path={path}"]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    """Measures the path of `--path`, or all paths and the FLOPs."""
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
    flags.DEFINE_integer("concepts", 171, "Number of concepts.", lower_bound=1)
    flags.DEFINE_integer("image_size", 768, "Side of the square input of the image tower.", lower_bound=32)
    flags.DEFINE_integer("height", 375, "Height of the label.", lower_bound=1)
    flags.DEFINE_integer("width", 500, "Width of the label.", lower_bound=1)
    flags.DEFINE_integer("class_chunk", 9, "Concepts computed at a time.", lower_bound=0)
    flags.DEFINE_integer("repeats", 3, "Number of timed runs.", lower_bound=1)
    flags.DEFINE_enum("path", None, list(PATHS), "Measure only this path and print JSON.")
    app.run(main)
