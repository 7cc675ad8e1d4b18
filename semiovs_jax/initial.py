"""The weights a student starts with: a pretrained backbone, a random head, and the words of its classes."""

from typing import Any

import jax.numpy as jnp
import ml_collections

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from semiovs_jax.models import Functional, SemiVL, Student
from semiovs_jax.models.clip.file import load_clip
from semiovs_jax.models.deeplab.params import load_backbone
from semiovs_jax.models.semivl.params import load_semivl_backbone
from semiovs_jax.ovs.text import embed_text, mean_over_templates
from semiovs_jax.ovs.vocabulary import vocabulary_of_names
from semiovs_jax.weights.parts import weights_path


def initial_weights(config: ml_collections.ConfigDict, student: Student) -> tuple[Any, Any]:
    """A student's parameters and running statistics before training.

    Args:
      config: the whole config.
      student: with random weights.

    Raises:
      InputError: there are no weights to load and `random_init` does not ask for random ones, or they do not fit.
    """
    _, params, batch_stats = Functional.create(student)
    if isinstance(student, SemiVL):
        batch_stats = {**batch_stats, "text": _embed_class_names(config, batch_stats["text"].shape)}
    if config.model.random_init:
        return params, batch_stats
    _check_weights(config.model, "clip" if isinstance(student, SemiVL) else "resnet")
    if isinstance(student, SemiVL):
        return load_semivl_backbone(config.model.weights, params), batch_stats
    return load_backbone(config.model.weights, params, batch_stats)


def _embed_class_names(config: ml_collections.ConfigDict, shape: tuple[int, int]) -> Any:
    """The student's text embeddings: the dataset's class names, by the text tower of `config.clip`."""
    dataset, clip = dataset_info(config.data.dataset), load_clip(config.clip.weights)
    if clip.config.text.embed_dim != shape[1]:
        raise InputError(
            f"config.clip.weights={config.clip.weights!r} embeds text in {clip.config.text.embed_dim} channels, "
            f"config.model.backbone={config.model.backbone!r} images in {shape[1]}; take both from one CLIP"
        )
    names = vocabulary_of_names("config.clip.class_prompt", dataset.classes, config.clip.class_prompt)
    return jnp.asarray(mean_over_templates(embed_text(clip.config.text, clip.text, names)))


_SOURCES = {
    "resnet": "fetch the ImageNet backbone that the UniMatch and SemiOVS repositories link to ({backbone}.pth)",
    "clip": "fetch CLIP's ViT-B/16 (OpenAI's, Hugging Face's, or SemiVL's clip2mmseg_ViT16_clip_backbone.pth, which is "
    "of kind clip_visual)",
}


def _check_weights(config: ml_collections.ConfigDict, kind: str) -> None:
    if not weights_path(config.weights).is_file():
        raise InputError(
            f"config.model.weights={config.weights!r}: no such file; {_SOURCES[kind].format(backbone=config.backbone)} "
            f"and convert it with python -m semiovs_jax.convert SOURCE {config.weights or 'OUT.safetensors'} "
            f"--kind={kind}, or start from random weights with --config.model.random_init=True"
        )
