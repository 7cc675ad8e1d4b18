"""Published DeepLabV3+ students and ImageNet backbones to our parameters.

The names are those of the official SemiOVS and UniMatch trainers. Their ImageNet backbones (`resnet50.pth`,
`resnet101.pth`) have the same names without `backbone.`, and a classifier `fc`, which is dropped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.file import DEEPLAB, DeepLabConfig, tensor_shapes
from semiovs_jax.models.functional import Functional, PyTree
from semiovs_jax.weights.files import load_weights
from semiovs_jax.weights.keys import Converted, Converter, Rule, convert, fill, flatten, match_exactly

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

_CLASSIFIER = "classifier.weight"


def infer_architecture(
    source: Mapping[str, Any],
    *,
    dilate: Sequence[bool] | None = None,
    rates: Sequence[int] = (6, 12, 18),
    name: str = "weights",
) -> Architecture:
    """Infers the architecture from the names and shapes of `source`.

    Args:
      source: State dict of a student, or of a backbone alone; anything with a `shape` by published name.
      dilate: The reference's `replace_stride_with_dilation`; None: the last stage only. Shapes do not determine it.
      rates: The reference's `dilations` of the ASPP branches. Shapes do not determine them.
      name: The file that `source` comes from, for the error message.

    Raises:
      InputError: Not a deep-stem bottleneck ResNet, alone or in a DeepLabV3+.
    """
    prefix = "backbone." if any(key.startswith("backbone.") for key in source) else ""
    blocks = [re.match(rf"{re.escape(prefix)}layer(\d+)\.(\d+)\.conv3\.", key) for key in source]
    found = [(int(match[1]), int(match[2])) for match in blocks if match]
    stages = sorted({stage for stage, _ in found})

    def channels(key: str) -> int:
        if key not in source:
            raise InputError(
                f"{name}: no `{key}`, expected a ResNet with bottlenecks and a stem of three convolutions; fetch the "
                "resnet50.pth or resnet101.pth that the UniMatch and SemiOVS repositories link to, or a student of them"
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
    """Converts an ImageNet backbone: `--kind=resnet`.

    Args:
      source: State dict of a deep-stem bottleneck ResNet of any depth.
      name: The file that `source` comes from, for error messages.

    Returns:
      Values below `backbone/`, and the dropped keys (`fc.*`, step counters).

    Raises:
      InputError: Another network, or an extra or missing tensor or one of a wrong shape.
    """
    architecture = infer_architecture(source, name=name)
    backbone = nnx.eval_shape(lambda: architecture.build_backbone(rngs=nnx.Rngs(0)))
    _, params, batch_stats = Functional.create(backbone)
    target = flatten({"backbone": params}) | flatten({"backbone": batch_stats})
    return convert(source, BACKBONE_RULES, target, name=name)


def convert_deeplab(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Converts a student: `--kind=deeplab`.

    Args:
      source: State dict of DeepLabV3+ that UniMatch, PrevMatch or SemiOVS trained. The last stage is dilated and the
        ASPP rates are 6, 12 and 18, as in the configs of these repositories; shapes do not determine them. UniMatch's
        first Cityscapes config has other dilations: this kind does not suit its students.
      name: The file that `source` comes from, for error messages.

    Returns:
      Parameters and running statistics, the dropped keys (step counters), and a `DeepLabConfig` as metadata.

    Raises:
      InputError: Another network, or an extra or missing tensor or one of a wrong shape.
    """
    if _CLASSIFIER not in source:
        raise InputError(
            f"{name}: no `{_CLASSIFIER}`, expected a DeepLabV3+ student; convert a backbone with --kind=resnet"
        )
    config = DeepLabConfig(infer_architecture(source, name=name), num_classes=source[_CLASSIFIER].shape[0])
    return replace(convert(source, STUDENT_RULES, tensor_shapes(config), name=name), metadata=DEEPLAB.metadata(config))


def convert_student(
    source: Mapping[str, np.ndarray], params: PyTree, batch_stats: PyTree, *, name: str = "weights"
) -> tuple[PyTree, PyTree]:
    """Parameters and running statistics of a student from a published state dict.

    Args:
      source: State dict of DeepLabV3+.
      params: The student's parameters, for paths, shapes and dtypes.
      batch_stats: The student's running statistics, for the same.
      name: The file that `source` comes from, for error messages.

    Raises:
      WeightMismatchError: An extra or missing tensor or one of a wrong shape.
    """
    values = convert(source, STUDENT_RULES, flatten(params) | flatten(batch_stats), name=name).values
    return fill(params, values), fill(batch_stats, values)


def load_backbone(path: str, params: PyTree, batch_stats: PyTree) -> tuple[PyTree, PyTree]:
    """Replaces the backbone of a freshly initialized student by converted ImageNet weights.

    Args:
      path: File written by `python -m semiovs_jax.convert ... --kind=resnet`.
      params: The student's parameters. Everything beside `backbone` is returned unchanged.
      batch_stats: The student's running statistics. Everything beside `backbone` is returned unchanged.

    Raises:
      InputError: The file is missing, damaged or of another kind, or its tensors are not exactly those of the
        student's backbone.
    """
    values, metadata = load_weights(path)
    if metadata.get("kind") != "resnet":
        raise InputError(
            f"{path}: holds weights of kind {metadata.get('kind')!r}, config.model.weights needs kind 'resnet'; "
            "convert a backbone with `python -m semiovs_jax.convert SOURCE OUT --kind=resnet`"
        )
    backbones = [{"backbone": tree["backbone"]} for tree in (params, batch_stats)]
    backbone = match_exactly(values, flatten(backbones[0]) | flatten(backbones[1]), name=path)
    loaded = [fill(tree, backbone) for tree in backbones]
    return {**params, **loaded[0]}, {**batch_stats, **loaded[1]}


KINDS: dict[str, Converter] = {"resnet": convert_resnet, DEEPLAB.kind: convert_deeplab}
