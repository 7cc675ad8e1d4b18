"""Published DeepLabV3+ students to our parameters, and back.

The names are those of the official SemiOVS and UniMatch trainers. They have no ResNet with a plain stem: a student on
one has torchvision's names below `backbone.`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.deeplab.file import DEEPLAB, DeepLabConfig, tensor_shapes
from semiovs_jax.models.deeplab.resnet_params import (
    conv_norm_rules,
    deep_stem_rules,
    find_origin,
    infer_resnet,
    plain_stem_rules,
)
from semiovs_jax.models.functional import PyTree
from semiovs_jax.weights.keys import (
    Converted,
    Converter,
    Rule,
    convert,
    fill,
    flatten,
    published_names,
    strip_prefix,
    target_shapes,
)

_HEAD_RULES = [
    *conv_norm_rules(r"head\.b([0-3])\.0", r"head\.b([0-3])\.1", r"aspp/branches/\1"),
    *conv_norm_rules(r"head\.b4\.gap\.1", r"head\.b4\.gap\.2", "aspp/pool"),
    *conv_norm_rules(r"head\.project\.0", r"head\.project\.1", "aspp/project"),
    *conv_norm_rules(r"reduce\.0", r"reduce\.1", "low_level"),
    *conv_norm_rules(r"fuse\.0", r"fuse\.1", "fuse/0"),
    *conv_norm_rules(r"fuse\.3", r"fuse\.4", "fuse/1"),
    Rule(r"classifier\.weight", "classifier/kernel", "conv"),
    Rule(r"classifier\.bias", "classifier/bias"),
]

STUDENT_RULES = [*deep_stem_rules(r"backbone\."), *_HEAD_RULES]
PLAIN_STUDENT_RULES = [*plain_stem_rules(r"backbone\."), *_HEAD_RULES]

_BACKBONE, _CLASSIFIER = "backbone.", "classifier.weight"


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
      InputError: Not a ResNet, alone or in a DeepLabV3+.
    """
    is_student = any(key.startswith(_BACKBONE) for key in source)
    backbone = strip_prefix(source, _BACKBONE if is_student else "")
    architecture = infer_resnet(target_shapes(backbone, find_origin(backbone, name=name).rules), name=name)
    architecture = replace(architecture, rates=tuple(rates))
    if dilate is not None:
        architecture = replace(architecture, dilate=tuple(dilate))
    if not is_student:
        return architecture
    shapes = target_shapes(source, _HEAD_RULES)
    project, low_level = "aspp/project/conv/kernel", "low_level/conv/kernel"
    if missing := [path for path in (project, low_level) if path not in shapes]:
        raise InputError(f"{name}: a student without {', '.join(missing)}; expected a DeepLabV3+: fetch it again")
    return replace(architecture, channels=shapes[project][-1], low_level_channels=shapes[low_level][-1])


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
    architecture = infer_architecture(source, name=name)
    config = DeepLabConfig(architecture, num_classes=source[_CLASSIFIER].shape[0])
    converted = convert(source, _rules_of(source), tensor_shapes(config), name=name)
    return replace(converted, metadata=DEEPLAB.metadata(config))


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
    values = convert(source, _rules_of(source), flatten(params) | flatten(batch_stats), name=name).values
    return fill(params, values), fill(batch_stats, values)


def student_state_dict(params: PyTree, batch_stats: PyTree) -> dict[str, np.ndarray]:
    """The state dict that `convert_student` reads, which the official code loads strictly.

    PyTorch's counters of batches, which nothing reads, are 0.
    """
    rules = STUDENT_RULES if len(params["backbone"]["stem"]) > 1 else PLAIN_STUDENT_RULES
    source = published_names(flatten(params) | flatten(batch_stats), rules)
    norms = [key.removesuffix("running_var") for key in source if key.endswith(".running_var")]
    return source | {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}


def _rules_of(source: Mapping[str, Any]) -> list[Rule]:
    return PLAIN_STUDENT_RULES if f"{_BACKBONE}conv1.weight" in source else STUDENT_RULES


KINDS: dict[str, Converter] = {DEEPLAB.kind: convert_deeplab}
