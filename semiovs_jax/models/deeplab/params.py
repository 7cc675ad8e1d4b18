"""Published DeepLabV3+ students and ImageNet backbones to our parameters.

The names are those of the official SemiOVS and UniMatch trainers; their ImageNet backbones (`resnet50.pth`,
`resnet101.pth`) carry the same names without `backbone.`, and a classifier `fc` that is dropped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models import Functional
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.functional import PyTree
from semiovs_jax.weights.files import load_weights
from semiovs_jax.weights.keys import Converted, Rule, convert, flatten, unflatten

MAX_STAGES = 4


def _norm(source: str, target: str) -> list[Rule]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    rules = [Rule(rf"{source}\.{theirs}", f"{target}/{ours}") for theirs, ours in names.items()]
    return [*rules, Rule(rf"{source}\.num_batches_tracked", None)]


def _conv_norm(conv: str, norm: str, target: str) -> list[Rule]:
    return [Rule(rf"{conv}\.weight", f"{target}/conv/kernel", "conv"), *_norm(norm, f"{target}/norm")]


def _backbone_rules(prefix: str) -> list[Rule]:
    rules = [
        *_conv_norm(rf"{prefix}conv1\.0", rf"{prefix}conv1\.1", "backbone/stem/0"),
        *_conv_norm(rf"{prefix}conv1\.3", rf"{prefix}conv1\.4", "backbone/stem/1"),
        *_conv_norm(rf"{prefix}conv1\.6", rf"{prefix}bn1", "backbone/stem/2"),
    ]
    for stage in range(MAX_STAGES):
        block, target = rf"{prefix}layer{stage + 1}\.(\d+)", rf"backbone/stages/{stage}/\1"
        for i in (1, 2, 3):
            rules += _conv_norm(rf"{block}\.conv{i}", rf"{block}\.bn{i}", f"{target}/conv{i}")
        rules += _conv_norm(rf"{block}\.downsample\.0", rf"{block}\.downsample\.1", f"{target}/shortcut")
    return rules


BACKBONE_RULES = [*_backbone_rules(""), Rule(r"fc\.(weight|bias)", None)]

STUDENT_RULES = [
    *_backbone_rules(r"backbone\."),
    *_conv_norm(r"head\.b([0-3])\.0", r"head\.b([0-3])\.1", r"aspp/branches/\1"),
    *_conv_norm(r"head\.b4\.gap\.1", r"head\.b4\.gap\.2", "aspp/pool"),
    *_conv_norm(r"head\.project\.0", r"head\.project\.1", "aspp/project"),
    *_conv_norm(r"reduce\.0", r"reduce\.1", "low_level"),
    *_conv_norm(r"fuse\.0", r"fuse\.1", "fuse/0"),
    *_conv_norm(r"fuse\.3", r"fuse\.4", "fuse/1"),
    Rule(r"classifier\.weight", "classifier/kernel", "conv"),
    Rule(r"classifier\.bias", "classifier/bias"),
]


def infer_architecture(
    source: Mapping[str, Any],
    *,
    dilate: Sequence[bool] | None = None,
    rates: Sequence[int] = (6, 12, 18),
    name: str = "weights",
) -> Architecture:
    """The architecture whose weights `source` holds, read off names and shapes.

    Args:
      source: State dict of a student, or of a backbone alone; anything with a `shape` by published name.
      dilate: The reference's `replace_stride_with_dilation`, which shapes do not tell; None: the last stage only.
      rates: The reference's `dilations` of the ASPP branches, likewise.
      name: What `source` is, for the error message.

    Raises:
      InputError: Not a deep-stem bottleneck ResNet, with or without DeepLabV3+ around it.
    """
    prefix = "backbone." if any(key.startswith("backbone.") for key in source) else ""
    blocks = [re.match(rf"{re.escape(prefix)}layer(\d+)\.(\d+)\.conv3\.", key) for key in source]
    found = [(int(match[1]), int(match[2])) for match in blocks if match]
    stages = sorted({stage for stage, _ in found})

    def channels(key: str) -> int:
        if key not in source:
            raise InputError(
                f"{name}: no `{key}`: not a ResNet with bottlenecks and a stem of three convolutions; fetch the "
                "resnet50.pth or resnet101.pth that the UniMatch and SemiOVS repositories link to"
            )
        return source[key].shape[0]

    if dilate is None:
        dilate = [stage == stages[-1] for stage in stages[1:]]
    widths = tuple(channels(f"{prefix}layer{stage}.0.conv2.weight") for stage in stages)
    architecture = Architecture(
        tuple(1 + max(block for s, block in found if s == stage) for stage in stages),
        stem_widths=tuple(channels(f"{prefix}conv1.{i}.weight") for i in (0, 3, 6)),
        widths=widths,
        expansion=channels(f"{prefix}layer1.0.conv3.weight") // channels(f"{prefix}layer1.0.conv2.weight"),
        dilate=tuple(dilate),
        rates=tuple(rates),
    )
    if not prefix:
        return architecture
    return replace(
        architecture,
        channels=channels("head.project.0.weight"),
        low_level_channels=channels("reduce.0.weight"),
    )


def convert_resnet(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Renames an ImageNet backbone: the converter of `--kind=resnet`.

    Args:
      source: State dict of a deep-stem bottleneck ResNet of any depth.
      name: Where it comes from, for error messages.

    Returns:
      Values below `backbone/`, and the dropped names (`fc.*`, step counters).

    Raises:
      InputError: Another network, or a tensor too many, too few or of a wrong shape.
    """
    architecture = infer_architecture(source, name=name)
    backbone = nnx.eval_shape(lambda: architecture.build_backbone(rngs=nnx.Rngs(0)))
    _, params, batch_stats = Functional.create(backbone)
    target = flatten({"backbone": params}) | flatten({"backbone": batch_stats})
    return convert(source, BACKBONE_RULES, target, name=name)


def convert_student(
    source: Mapping[str, np.ndarray], params: PyTree, batch_stats: PyTree, *, name: str = "weights"
) -> tuple[PyTree, PyTree]:
    """Parameters and running statistics of a student from a published state dict.

    Args:
      source: State dict of DeepLabV3+.
      params: The student's parameters, for names and shapes.
      batch_stats: Its running statistics, likewise.
      name: What `source` is, for error messages.

    Raises:
      WeightMismatchError: A tensor too many, too few or of a wrong shape.
    """
    target = flatten(params) | flatten(batch_stats)
    return _fill(convert(source, STUDENT_RULES, target, name=name).values, params, batch_stats)


def load_backbone(path: str, params: PyTree, batch_stats: PyTree) -> tuple[PyTree, PyTree]:
    """Replaces the backbone of a freshly initialized student by converted ImageNet weights.

    Args:
      path: File written by `python -m semiovs_jax.convert ... --kind=resnet`.
      params: The student's parameters; everything beside `backbone` is returned as it is.
      batch_stats: Its running statistics, likewise.

    Raises:
      InputError: The file is missing, damaged or of another kind, or its tensors are not exactly those of the
        student's backbone.
    """
    values, metadata = load_weights(path)
    if metadata.get("kind") != "resnet":
        raise InputError(
            f"{path}: holds weights of kind {metadata.get('kind')!r}, config.model.weights needs a backbone; "
            "convert one with `python -m semiovs_jax.convert SOURCE OUT --kind=resnet`"
        )
    fresh = flatten(params) | flatten(batch_stats)
    target = {path: value for path, value in fresh.items() if path.startswith("backbone/")}
    backbone = convert(values, [Rule(r"(.*)", r"\1")], target, name=path).values
    return _fill(fresh | backbone, params, batch_stats)


def _fill(values: Mapping[str, Any], params: PyTree, batch_stats: PyTree) -> tuple[PyTree, PyTree]:
    """The two collections with their leaves replaced by `values`, which no two paths share."""
    collections = [
        unflatten({path: jnp.asarray(values[path], leaf.dtype) for path, leaf in flatten(tree).items()})
        for tree in (params, batch_stats)
    ]
    return collections[0], collections[1]
