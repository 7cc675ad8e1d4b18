"""Initial weights of a student: random, or pretrained in part or in whole; and text embeddings of its class names."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from semiovs_jax.fine_tuning import is_trained, read_trained, take_over
from semiovs_jax.models import FAMILIES, Functional, Student
from semiovs_jax.models.clip.file import load_clip, missing_clip
from semiovs_jax.ovs.text import embed_text, mean_over_templates
from semiovs_jax.ovs.vocabulary import vocabulary_of_names
from semiovs_jax.weights.parts import missing_weights, weights_path


def initial_weights(config: ml_collections.ConfigDict, dataset: DatasetInfo, student: Student) -> tuple[Any, Any]:
    """Returns the parameters and the running statistics of a student before training.

    Args:
      config: an experiment's config; the sections model and clip are read.
      dataset: the classes.
      student: the config's student with random weights, or its shapes.

    Returns:
      (params, batch_stats), pure dicts.

    Raises:
      InputError: `config.model.random_init` is off, and the weights that `config.model.weights` names (of a backbone,
        or of a trained student, see `fine_tuning`) are missing or do not fit the student.
    """
    _, params, batch_stats = Functional.create(student)
    if student.class_embedding_dim is not None:
        batch_stats = {**batch_stats, "text": _embed_class_names(config, dataset, student.class_embedding_dim)}
    if config.model.random_init:
        return params, batch_stats
    family = FAMILIES[config.model.backbone]
    weights = config.model.weights
    if weights and is_trained(weights, config.model.backbone):
        return take_over(read_trained(weights, config.model.backbone), params, batch_stats, dataset)
    otherwise = "give the workdir of a run, or start from random weights with --config.model.random_init=True"
    if fault := missing_weights(
        "config.model.weights", weights, family.WEIGHTS_KIND, source=family.WEIGHTS_SOURCE, otherwise=otherwise
    ):
        raise InputError(fault)
    return family.load_pretrained(str(weights_path(weights)), params, batch_stats)


def _embed_class_names(config: ml_collections.ConfigDict, dataset: DatasetInfo, embed_dim: int) -> jax.Array:
    """Text embeddings of the dataset's class names, [K, embed_dim], by the text encoder of `config.clip`."""
    if fault := missing_clip("config.clip.weights", config.clip.weights):
        raise InputError(fault)
    clip = load_clip(config.clip.weights)
    if clip.config.text.embed_dim != embed_dim:
        raise InputError(
            f"config.clip.weights={config.clip.weights!r} embeds text in {clip.config.text.embed_dim} channels, "
            f"config.model.backbone={config.model.backbone!r} images in {embed_dim}; take both from the same CLIP"
        )
    names = vocabulary_of_names("config.clip.class_prompt", dataset.classes, config.clip.class_prompt)
    return jnp.asarray(mean_over_templates(embed_text(clip.config.text, clip.text, names)))
