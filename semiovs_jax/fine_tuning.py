"""Starts a student from another trained one: of a run, an exported one, or a published one that was converted."""

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import InputError
from semiovs_jax.checkpoints.checkpointer import read_evaluated
from semiovs_jax.models import FAMILIES
from semiovs_jax.weights.files import load_weights, read_metadata
from semiovs_jax.weights.keys import flatten, match_exactly, unflatten
from semiovs_jax.weights.parts import weights_path
from semiovs_jax.weights.state_dicts import STATE_DICT

_TEXT = "text"  # embeddings of the class names, which a student on CLIP has among its running statistics

_logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A trained student.

    Attributes:
      values: parameters and running statistics, by "/" path.
      source: where they are from, in words.
      backbone: the student's name; "" if unknown.
      classes: names of its classes; None if unknown.
    """

    values: Mapping[str, Any]
    source: str
    backbone: str = ""
    classes: tuple[str, ...] | None = None


def is_trained(weights: str, backbone: str) -> bool:
    """Whether `config.model.weights` names a trained student of the backbone's family, and not a backbone alone.

    Every folder is taken for a run; `read_trained` refuses another one.
    """
    path = weights_path(weights)
    if not path.is_file():
        return path.is_dir()
    return read_metadata(path).get("kind", "") in (STATE_DICT, FAMILIES[backbone].STUDENT_KIND)


def read_trained(weights: str, backbone: str) -> Trained:
    """Reads a trained student.

    Args:
      weights: `config.model.weights`: the workdir of a run, whose best checkpoint is read, the directory of one
        checkpoint, or a weight file of `semiovs_jax.export` or of a converted student.
      backbone: `config.model.backbone`.

    Raises:
      InputError: there is none, it is damaged, or it is another student.
    """
    path = weights_path(weights)
    if path.is_dir():
        return _read_run(weights, backbone)
    values, metadata = load_weights(path)
    if metadata["kind"] != STATE_DICT:
        return Trained(values, weights)
    _refuse_other(weights, metadata.get("backbone", ""), backbone)
    values = FAMILIES[backbone].convert_student(values, weights).values
    classes = tuple(json.loads(metadata["classes"])) if "classes" in metadata else None
    return Trained(values, weights, metadata.get("backbone", ""), classes)


def _read_run(weights: str, backbone: str) -> Trained:
    restored = read_evaluated(weights_path(weights), field="config.model.weights")
    config = restored.meta["config"]
    _refuse_other(weights, config["model"]["backbone"], backbone)
    values = {path: value for tree in restored.state.values() for path, value in flatten(tree).items()}
    source = f"{weights} (step {restored.meta['step']})"
    return Trained(values, source, config["model"]["backbone"], _class_names(config["data"]["dataset"]))


def _class_names(name_or_path: str) -> tuple[str, ...] | None:
    try:
        return dataset_info(name_or_path).classes
    except InputError:  # a file of the other run that is not here any more
        return None


def _refuse_other(weights: str, found: str, backbone: str) -> None:
    if found not in ("", backbone):
        raise InputError(
            f"config.model.weights={weights!r}: a student on {found}, but config.model.backbone={backbone!r}; set "
            f"--config.model.backbone={found}, or give other weights"
        )


def take_over(
    trained: Trained, params: dict[Any, Any], batch_stats: dict[Any, Any], dataset: DatasetInfo
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Replaces a student's weights by those of a trained one, all but what depends on another number of classes.

    Logs what is not taken over, and why, unless `params` are shapes.

    Args:
      trained: the trained student.
      params: parameters of the student, or their shapes.
      batch_stats: running statistics of the student, or their shapes. Embeddings of class names are kept.
      dataset: the student's classes.

    Returns:
      The parameters and the running statistics.

    Raises:
      WeightMismatchError: anything else differs; the message lists all.
    """
    target = flatten(params) | flatten(batch_stats)
    kept = {path: leaf for path, leaf in target.items() if path == _TEXT}
    heads, count = _other_classes(trained.values, target, dataset.num_classes)
    values = {path: value for path, value in trained.values.items() if path not in kept and path not in heads}
    wanted = {path: leaf for path, leaf in target.items() if path not in kept and path not in heads}
    taken = match_exactly(values, wanted, name=f"config.model.weights: {trained.source}")
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in target.values()):
        _logger.info("fine-tuning %s: %d of %d tensors taken over", trained.source, len(taken), len(target))
        if heads:
            _logger.info("new: %s (%d classes there, %d here)", ", ".join(heads), count, dataset.num_classes)
        elif trained.classes is not None and trained.classes != dataset.classes:
            _logger.warning(
                "the head is taken over, but its classes have other names: %s there, %s here",
                *(", ".join(classes) for classes in (trained.classes, dataset.classes)),
            )
        if kept:
            _logger.info("new: %s (embeddings of the class names of %s)", _TEXT, dataset.name)
    return _replaced(params, taken), _replaced(batch_stats, taken)


def _replaced(tree: dict[Any, Any], taken: Mapping[str, Any]) -> dict[Any, Any]:
    leaves = flatten(tree).items()
    return unflatten({path: jnp.asarray(taken[path], leaf.dtype) if path in taken else leaf for path, leaf in leaves})


def _other_classes(values: Mapping[str, Any], target: Mapping[str, Any], num_classes: int) -> tuple[list[str], int]:
    """The paths of the tensors that differ in the number of classes and in nothing else, and that other number."""
    found: dict[str, int] = {}
    for path in values.keys() & target.keys():
        sizes = zip(values[path].shape, target[path].shape, strict=False)
        differing = [pair for pair in sizes if pair[0] != pair[1]]
        if values[path].ndim == len(target[path].shape) and len(differing) == 1 and differing[0][1] == num_classes:
            found[path] = differing[0][0]
    counts = set(found.values())
    return (sorted(found), counts.pop()) if len(counts) == 1 else ([], num_classes)
