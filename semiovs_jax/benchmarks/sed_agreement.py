"""How far SED's faster paths label as its exact one does.

    python -m semiovs_jax.benchmarks.sed_agreement --config=configs/demo.py

Labels the config's OOD images with the exact path in float32, and with what trades exactness for speed: the fast path,
which keeps the concepts that are among the best k of some pixel, and bfloat16.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_image
from data_pipelines.loading.streams import open_config_split
from semiovs_jax.ovs.sed import Sed, build_sed
from semiovs_jax.runtime.command import run_command


def paths(config: Any, num_classes: int, top_k: tuple[int, ...]) -> dict[str, Sed]:
    """The exact path, first, and its faster variants."""
    settings = {**config, "dtype": "float32", "top_k": 0}
    exact = build_sed(settings, num_classes)
    fast = {f"fast, k = {k}": dataclasses.replace(exact, top_k=k) for k in top_k}
    return {"exact": exact, **fast, "bfloat16": build_sed(settings | {"dtype": "bfloat16"}, num_classes)}


def label_squares(sed: Sed, squares: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences [N, S, S] of prepared images [N, S, S, 3], at the squares' own size."""
    side = squares.shape[1]
    label = jax.jit(lambda weights, image: sed.label(weights, image, canvas=(side, side)))
    found = [
        jax.device_get(label(sed.weights, jnp.asarray(squares[i : i + batch_size], jnp.float32)))
        for i in range(0, len(squares), batch_size)
    ]
    return np.concatenate([labels.label for labels in found]), np.concatenate([labels.confidence for labels in found])


def main(arguments: Any) -> None:
    """Prints, for every path, the share of pixels labeled as on the exact path."""
    config = arguments.config
    if config.ovs.name != "sed":
        raise InputError(f"config.ovs.name is {config.ovs.name!r}; this compares the paths of 'sed'")
    compared = paths(config.ovs, dataset_info(config.data.dataset).num_classes, (1, 2, 4, 8))
    source = open_config_split(config.data, "ood")
    count = min(arguments.images, len(source))
    squares = np.stack([compared["exact"].prepare(decode_image(source[i].image)) for i in range(count)])
    exact: tuple[np.ndarray, np.ndarray] | None = None
    for name, sed in compared.items():
        label, confidence = label_squares(sed, squares, config.ovs.batch_size)
        exact_label, exact_confidence = exact = exact or (label, confidence)
        same = 100 * np.mean(label == exact_label)
        change = np.abs(confidence - exact_confidence).mean()
        print(f"{name:<12} {same:7.3f} % of pixels labeled alike; confidence differs by {change:.4f} on average")


if __name__ == "__main__":
    flags.DEFINE_integer("images", 64, "How many OOD images are labeled.", lower_bound=1)
    run_command(main, needs_workdir=False)
