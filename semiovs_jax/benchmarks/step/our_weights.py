"""Weights of our train step without a file: random ones, or those of a state dict with published names."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from data_pipelines.datasets import DatasetInfo
from semiovs_jax import experiment
from semiovs_jax.benchmarks.step.cases import FIRST_STEP
from semiovs_jax.benchmarks.step.weights import Weights, Words
from semiovs_jax.labelers import Labeler
from semiovs_jax.labelers.maskclip import FrozenModel
from semiovs_jax.labelers.snapshots import SnapshotState
from semiovs_jax.methods import Method
from semiovs_jax.models import FAMILIES, Functional, Student
from semiovs_jax.models.clip.vit import ClipVit
from semiovs_jax.models.deeplab.params import convert_student
from semiovs_jax.models.precision import DTYPES
from semiovs_jax.models.semivl.params import convert_label_maker, convert_semivl_student
from semiovs_jax.ovs.maskclip import MaskClip
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import StepSpec

_MASKCLIP, _SNAPSHOTS = "maskclip", "snapshots"  # labelers
_LOGIT_SCALE = 100.0  # of OpenAI's CLIP


def initial_state(
    config: ml_collections.ConfigDict, dataset: DatasetInfo, spec: StepSpec, weights: Weights
) -> TrainState:
    """The state at `FIRST_STEP`, with all of PrevMatch's snapshots."""
    student = nnx.eval_shape(lambda: experiment.make_student(config, dataset))
    _, params, batch_stats = Functional.create(student)
    if weights.student is None:
        params, batch_stats = _random(params), _random(batch_stats)
    else:
        convert = convert_student if student.class_embedding_dim is None else convert_semivl_student
        params, batch_stats = convert(weights.student, params, batch_stats)
    if "text" in batch_stats:
        words = weights.words or _random_words(config, dataset, batch_stats["text"].shape[1])
        batch_stats = {**batch_stats, "text": jnp.asarray(words.text)}
    create = jax.jit(functools.partial(TrainState.create, optimizer=spec.optimizer, labelers={}))
    state = create(params, batch_stats)
    labelers = {}
    if _SNAPSHOTS in spec.labelers:
        labelers[_SNAPSHOTS] = _snapshots(params, batch_stats, config.method.snapshots.capacity, weights.snapshots)
    return dataclasses.replace(state, step=jnp.int32(FIRST_STEP), labelers=labelers)


def _random(shapes: Any) -> Any:
    """Random kernels, as large as keeps the scale of activations; scales and variances 1, all else 0."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim < 2:
            return np.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)
        deviation = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        return (deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


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
    """All places filled: in turn by the state dicts, or, without, by the student."""
    student = params, batch_stats
    held = [convert_student(source, *student) for source in sources] or [student]

    def stack(*leaves: jax.Array) -> np.ndarray:
        return np.stack([leaves[slot % len(leaves)] for slot in range(capacity)])

    params, batch_stats = jax.tree.map(stack, *held)
    return SnapshotState(params, batch_stats, pushed=jnp.int32(capacity), best=jnp.float32(1))


def _maskclip(config: ml_collections.ConfigDict, dataset: DatasetInfo, weights: Weights) -> MaskClip:
    """SemiVL's frozen CLIP, its image tower that of the student's backbone."""
    if weights.student is None:
        vision = FAMILIES[config.model.backbone].STUDENTS[config.model.backbone].visual
        shapes = nnx.eval_shape(lambda: ClipVit(vision, rngs=nnx.Rngs(0)))
        visual = _random(nnx.to_pure_dict(nnx.state(shapes, nnx.Param)))
    else:
        vision, visual = convert_label_maker(weights.student)
    words = weights.words or _random_words(config, dataset, vision.embed_dim)
    tower = nnx.eval_shape(lambda: ClipVit(vision, dtype=DTYPES[config.clip.dtype], rngs=nnx.Rngs(0)))
    return MaskClip(
        weights={"visual": visual, "text": words.concepts},
        num_classes=dataset.num_classes,
        image_size=config.data.crop_size,
        fingerprint="",
        visual=nnx.graphdef(tower),
        concepts_per_class=tuple(words.concepts_per_class),
        normalization=config.clip.normalization,
        logit_scale=_LOGIT_SCALE,
        matmul_precision=config.clip.matmul_precision,
    )


def _random_words(config: ml_collections.ConfigDict, dataset: DatasetInfo, embed_dim: int) -> Words:
    """As many as the config's vocabulary has."""
    words, rng = load_vocabulary(config.clip.vocabulary, dataset.num_classes).split_synonyms(), np.random.default_rng(0)
    text, concepts = (rng.normal(size=(count, embed_dim)) for count in (dataset.num_classes, len(words.concepts)))
    counts = np.bincount(words.class_of_concept, minlength=len(words.classes)).tolist()
    return Words(_unit(text), _unit(concepts), counts)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
