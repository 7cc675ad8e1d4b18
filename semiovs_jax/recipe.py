"""From a config to the static side of a train step; the same for training and for compiling ahead."""

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from flax import nnx

from data_pipelines.datasets import load_dataset
from data_pipelines.errors import InputError
from semiovs_jax.labelers import OVS
from semiovs_jax.methods import Method, make_method
from semiovs_jax.models import Functional, Student, build_student
from semiovs_jax.optim import make_optimizer
from semiovs_jax.ovs import build_ovs
from semiovs_jax.ovs.maskclip import build_maskclip_labeler
from semiovs_jax.train_step import Recipe


def total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Length of the run: `config.train.steps`, or where that is 0 `config.train.epochs` epochs.

    Raises:
      InputError: neither is positive.
    """
    steps = config.train.steps or config.train.epochs * steps_per_epoch
    if steps <= 0:
        raise InputError(
            f"config.train.steps={config.train.steps} and config.train.epochs={config.train.epochs} make no step; "
            "set one of them to a positive number"
        )
    return steps


def needs_ovs(config: ml_collections.ConfigDict, method: Method, labels: str) -> bool:
    """Whether the method learns from OVS labels that are made in the way `labels`, "cached" or "online".

    Raises:
      InputError: `config.ovs.labels` is neither.
    """
    if "ood" not in method.streams:
        return False
    if config.ovs.labels not in ("cached", "online"):
        raise InputError(f"config.ovs.labels={config.ovs.labels!r}: choose 'cached' or 'online'")
    return config.ovs.labels == labels


def build_frozen_labelers(config: ml_collections.ConfigDict, method: Method) -> dict[str, OVS]:
    """The models that label inside the train step, by labeler; reads their weights.

    Raises:
      InputError: weights or vocabulary are missing or unusable.
    """
    num_classes = load_dataset(config.data.dataset).num_classes
    frozen: dict[str, OVS] = {}
    if needs_ovs(config, method, "online"):
        frozen["ovs"] = build_ovs(config.ovs, num_classes)
    if "dense_clip" in method.labeled_by:
        frozen["dense_clip"] = build_maskclip_labeler(config.clip, num_classes, image_size=config.data.crop_size)
    return frozen


def make_student(config: ml_collections.ConfigDict) -> Student:
    """The student of a config with random weights; inside `nnx.eval_shape`, its shapes alone.

    Raises:
      InputError: an unknown backbone or dtype, or one that cannot be evaluated as `config.eval` says.
    """
    num_classes, crop = load_dataset(config.data.dataset).num_classes, config.data.crop_size
    student = build_student(config.model, num_classes, image_size=crop, rngs=nnx.Rngs(config.seed))
    if student.windowed and not config.eval.window:
        raise InputError(
            f"config.eval.window=0: config.model.backbone={config.model.backbone!r} is evaluated by windows; set it to "
            f"the crop's {crop}, config.eval.short_side to as much or more, and config.eval.stride"
        )
    return student


def make_recipe(
    config: ml_collections.ConfigDict,
    student: Student,
    steps: int,
    steps_per_epoch: int,
    frozen: Mapping[str, OVS] | None = None,
) -> Recipe:
    """The static side of a config's train step.

    Args:
      config: the whole config.
      student: of `make_student`.
      steps: length of the run, which learning rate and weights of terms depend on.
      steps_per_epoch: updates in one pass over the unlabeled stream, likewise.
      frozen: of `build_frozen_labelers`.

    Raises:
      InputError: a config value that is none.
    """
    return Recipe(
        student=Functional.create(student)[0],
        perturbed_channels=student.perturbed_channels,
        method=make_method(config.method),
        optimizer=make_optimizer(config.optim, steps, student.parameter_groups),
        ignore_index=load_dataset(config.data.dataset).ignore_index,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
        frozen=frozen or {},
    )


def batch_structs(config: ml_collections.ConfigDict, method: Method) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of one training batch, as `data_pipelines.pipeline.make_train_iterator` describes it."""
    count, size = config.batch_size, config.data.crop_size
    plane = (count, size, size)
    fields = {
        "image": jax.ShapeDtypeStruct((*plane, 3), np.uint8),
        "valid": jax.ShapeDtypeStruct(plane, np.bool_),
        "index": jax.ShapeDtypeStruct((count,), np.int32),
        "substituted": jax.ShapeDtypeStruct((count,), np.int32),
    }
    label = {"label": jax.ShapeDtypeStruct(plane, np.uint8)}
    confidence = {"confidence": jax.ShapeDtypeStruct(plane, np.uint8)}
    extra = {"labeled": label}
    if needs_ovs(config, method, "cached"):
        extra["ood"] = label | (confidence if method.reads_ovs_confidence else {})
    return {stream: fields | extra.get(stream, {}) for stream in method.streams}
