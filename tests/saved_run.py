"""A run whose only checkpoint has made-up weights: what commands on finished runs need, without training."""

import json
import math
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx

from data_pipelines.datasets import dataset_info
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run
from semiovs_jax.experiment import make_student
from semiovs_jax.models import Functional
from semiovs_jax.weights.keys import flatten, unflatten
from tests.checkpoints.toy import make_iterator


def save_run(workdir: Path, config: ml_collections.ConfigDict, *, step: int = 2, miou: float = 0.5) -> Path:
    """Writes the config and a checkpoint of the student alone; returns the workdir."""
    dataset = dataset_info(config.data.dataset)
    student = nnx.eval_shape(lambda: make_student(config, dataset))
    params, batch_stats = Functional.create(student)[1:]
    state = {"params": made_up(params, seed=step), "batch_stats": made_up(batch_stats, seed=step + 1)}
    meta = describe_run(config, {"backbone": config.model.backbone, "classes": dataset.num_classes})
    with Checkpointer(workdir) as checkpointer:
        checkpointer.save(step, state, make_iterator(), meta, miou)
    (workdir / "config.json").write_text(json.dumps(meta["config"]))
    return workdir


def made_up(shapes: dict, seed: int) -> dict:
    """Random weights with activations of about unit variance."""
    rng = np.random.default_rng(seed)

    def value(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(leaf.shape)
        match path.rpartition("/")[2]:
            case "scale":
                noise = 1 + 0.1 * noise
            case "var":
                noise = 1 + 0.2 * noise**2
            case "kernel":
                noise *= math.sqrt(2 / math.prod(leaf.shape[:-1]))
            case _:
                noise *= 0.1
        return jax.device_put(noise.astype(leaf.dtype))

    return unflatten({path: value(path, leaf) for path, leaf in flatten(shapes).items()})
