"""Weights of our train step without a file: random ones, or those of a state dict with published names."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from data_pipelines.datasets import DatasetInfo
from semiovs_jax import experiment
from semiovs_jax.benchmarks.step_cases import FIRST_STEP
from semiovs_jax.labelers import Labeler
from semiovs_jax.labelers.maskclip import FrozenModel
from semiovs_jax.labelers.snapshots import SnapshotState
from semiovs_jax.methods import Method
from semiovs_jax.models import FAMILIES, Functional, Student
from semiovs_jax.models.clip.vit import ClipVit
from semiovs_jax.models.deeplab.params import convert_student
from semiovs_jax.models.layers import DTYPES
from semiovs_jax.models.semivl.params import convert_label_maker, convert_semivl_student
from semiovs_jax.ovs.maskclip import MaskClip
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import StepSpec

_MASKCLIP, _SNAPSHOTS = "maskclip", "snapshots"  # labelers
_LOGIT_SCALE = 100.0  # of OpenAI's CLIP


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of a step under their published names.

    Attributes:
      student: state dict of the student; None for random weights.
      snapshots: state dicts of PrevMatch's snapshots, by slot; where there are none, all are the student.
      text: for SemiVL, unit embeddings of the class names, [K, D], and of the concepts of its labels, [C, D].
    """

    student: Mapping[str, np.ndarray] | None = None
    snapshots: tuple[Mapping[str, np.ndarray], ...] = ()
    text: tuple[np.ndarray, np.ndarray] | None = None


def initial_state(
    config: ml_collections.ConfigDict, dataset: DatasetInfo, spec: StepSpec, weights: Weights
) -> TrainState:
    """The state at `FIRST_STEP`, with all of PrevMatch's snapshots."""
    if weights.student is None:
        _, params, batch_stats = Functional.create(experiment.make_student(config, dataset))
    else:
        shapes = nnx.eval_shape(lambda: experiment.make_student(config, dataset))
        params, batch_stats = _converted(weights.student, shapes)
    if "text" in batch_stats:
        batch_stats = {**batch_stats, "text": _text(weights, 0, *batch_stats["text"].shape)}
    state = TrainState.create(params, batch_stats, spec.optimizer, {})
    labelers = {}
    if _SNAPSHOTS in spec.labelers:
        labelers[_SNAPSHOTS] = _snapshots(params, batch_stats, config.method.snapshots.capacity, weights.snapshots)
    return dataclasses.replace(state, step=jnp.int32(FIRST_STEP), labelers=labelers)


def _converted(source: Mapping[str, np.ndarray], student: Student) -> tuple[Any, Any]:
    """Parameters and running statistics of a student from a published state dict."""
    _, params, batch_stats = Functional.create(student)
    convert = convert_student if student.class_embedding_dim is None else convert_semivl_student
    return convert(source, params, batch_stats)


def make_labelers(
    config: ml_collections.ConfigDict, dataset: DatasetInfo, method: Method, student: Student, weights: Weights
) -> dict[str, Labeler]:
    """The method's labelers; CLIP without a weight file."""
    without_files = dataclasses.replace(method, terms=tuple(t for t in method.terms if t.labeler != _MASKCLIP))
    made = experiment.make_labelers(config, dataset, without_files, student)
    if _MASKCLIP in method.labelers:
        made[_MASKCLIP] = FrozenModel(_maskclip(config, dataset, weights))
    return {name: made[name] for name in method.labelers}


def _snapshots(
    params: Any, batch_stats: Any, capacity: int, sources: Sequence[Mapping[str, np.ndarray]]
) -> SnapshotState:
    """All places filled, by state dicts or, without, by the student."""
    held = SnapshotState.create(params, batch_stats, capacity)
    for number in range(capacity):
        values = convert_student(sources[number], params, batch_stats) if sources else (params, batch_stats)
        held = _offer(held, *values, jnp.float32(number + 1))
    return held


_offer = jax.jit(SnapshotState.offer, donate_argnums=0)  # not donated, a bank of snapshots is held twice


def _maskclip(config: ml_collections.ConfigDict, dataset: DatasetInfo, weights: Weights) -> MaskClip:
    """SemiVL's frozen CLIP, its image tower that of the student's backbone."""
    if weights.student is None:
        vision = FAMILIES[config.model.backbone].STUDENTS[config.model.backbone].visual
        visual = nnx.to_pure_dict(nnx.state(ClipVit(vision, rngs=nnx.Rngs(1)), nnx.Param))
    else:
        vision, visual = convert_label_maker(weights.student)
    words = load_vocabulary(config.clip.vocabulary, dataset.num_classes).split_synonyms()
    tower = nnx.eval_shape(lambda: ClipVit(vision, dtype=DTYPES[config.clip.dtype], rngs=nnx.Rngs(0)))
    return MaskClip(
        weights={"visual": visual, "text": _text(weights, 1, len(words.concepts), vision.embed_dim)},
        num_classes=dataset.num_classes,
        image_size=config.data.crop_size,
        fingerprint="",
        visual=nnx.graphdef(tower),
        concepts_per_class=tuple(np.bincount(words.class_of_concept, minlength=len(words.classes)).tolist()),
        normalization=config.clip.normalization,
        logit_scale=_LOGIT_SCALE,
        matmul_precision=config.clip.matmul_precision,
    )


def _text(weights: Weights, index: int, rows: int, channels: int) -> jax.Array:
    """Given or random unit embeddings, [rows, channels]."""
    if weights.text is not None:
        return jnp.asarray(weights.text[index])
    drawn = jax.random.normal(jax.random.key(index), (rows, channels))
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
