"""The trained model of a run, with the facts that go with it."""

from typing import Any, NamedTuple

import jax
import ml_collections

from semiovs_jax.checkpoints.checkpointer import Which, restore_weights
from semiovs_jax.evaluated import Model, open_model
from semiovs_jax.runtime.sharding import make_mesh


class TrainedModel(NamedTuple):
    """A model that a run has trained.

    Attributes:
      config: the run's.
      workdir: the run, or one checkpoint of it, as the user named it.
      model: the architecture and its classes.
      params: parameters, numpy arrays.
      batch_stats: running statistics, numpy arrays.
      meta: description of the checkpoint, see `describe_run`.
    """

    config: ml_collections.ConfigDict
    workdir: str
    model: Model
    params: Any
    batch_stats: Any
    meta: dict[str, Any]


def read_model(config: ml_collections.ConfigDict, workdir: str, which: Which = "best") -> TrainedModel:
    """Reads the model that the method of a run evaluates: the student or its average.

    Args:
      config: the run's.
      workdir: the run, or the directory of one checkpoint in it.
      which: see `restore_weights`.

    Raises:
      InputError: invalid config values, or no checkpoint of this config.
    """
    model = open_model(config, make_mesh(jax.local_devices()[:1]))
    restored = restore_weights(workdir, model.target, which)
    params, batch_stats = jax.device_get(model.weights(restored.state))
    return TrainedModel(config, workdir, model, params, batch_stats, restored.meta)
