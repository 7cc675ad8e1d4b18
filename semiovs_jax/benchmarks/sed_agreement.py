"""Measures how many labels of SED's faster paths agree with its exact path.

    python -m semiovs_jax.benchmarks.sed_agreement --config=configs/demo.py

Labels the OOD images of a config with the exact path in float32, and with two approximations: the fast path, which
keeps the concepts that are among the best k of any pixel, and bfloat16.
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
from semiovs_jax.config_ranges import refuse_ranges
from semiovs_jax.ovs import sed as sed_model
from semiovs_jax.ovs.sed import Sed
from semiovs_jax.runtime.command import run_command


def paths(config: Any, num_classes: int, top_k: tuple[int, ...]) -> dict[str, Sed]:
    """The exact path, which comes first, and its faster variants."""
    settings = {**config, "dtype": "float32", "matmul_precision": "highest", "top_k": 0}
    exact = sed_model.build(settings, num_classes)
    fast = {f"fast, k = {k}": dataclasses.replace(exact, top_k=k) for k in top_k}
    return {"exact": exact, **fast, "bfloat16": sed_model.build(settings | {"dtype": "bfloat16"}, num_classes)}


def label_squares(sed: Sed, squares: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences [N, S, S] of preprocessed images [N, S, S, 3]."""
    side = squares.shape[1]
    label = jax.jit(lambda weights, image: sed.label(weights, image, label_size=(side, side)))
    found = [
        jax.device_get(label(sed.weights, jnp.asarray(squares[i : i + batch_size], jnp.float32)))
        for i in range(0, len(squares), batch_size)
    ]
    return np.concatenate([labels.label for labels in found]), np.concatenate([labels.confidence for labels in found])


def main(arguments: Any) -> None:
    """Prints, for every path, the share of pixels with the same label as on the exact path."""
    config = arguments.config
    refuse_ranges(config)
    if config.ovs.name != "sed":
        raise InputError(
            f"config.ovs.name is {config.ovs.name!r}; only 'sed' has several paths; set config.ovs.name=sed"
        )
    compared = paths(config.ovs, dataset_info(config.data.dataset).num_classes, (1, 2, 4, 8))
    source = open_config_split(config.data, "ood")
    count = min(arguments.images, len(source))
    squares = np.stack([compared["exact"].preprocess(decode_image(source[i].image)) for i in range(count)])
    exact: tuple[np.ndarray, np.ndarray] | None = None
    for name, sed in compared.items():
        label, confidence = label_squares(sed, squares, config.ovs.batch_size)
        exact_label, exact_confidence = exact = exact or (label, confidence)
        same = 100 * np.mean(label == exact_label)
        change = np.abs(confidence - exact_confidence).mean()
        print(f"{name:<12} {same:7.3f} % of pixels labeled alike; confidence differs by {change:.4f} on average")


if __name__ == "__main__":
    flags.DEFINE_integer("images", 64, "Number of OOD images to label.", lower_bound=1)
    run_command(main, needs_workdir=False)
