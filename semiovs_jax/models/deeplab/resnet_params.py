"""Published ImageNet ResNets to our parameters.

Three publishers' names are known; see `ORIGINS`. The stride of a bottleneck must be that of its 3x3 convolution, as in
all weights that they publish today: shapes do not show it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.functional import Functional, PyTree
from semiovs_jax.weights.files import load_weights
from semiovs_jax.weights.keys import Converted, Converter, Rule, convert, fill, flatten, match_exactly, target_shapes

MAX_STAGES = 4

_POOLED_SHORTCUT = r"layer\d+\.0\.downsample\.2\.weight"


def norm_rules(source: str, target: str) -> list[Rule]:
    """Batch normalization."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    rules = [Rule(rf"{source}\.{theirs}", f"{target}/{ours}") for theirs, ours in names.items()]
    return [*rules, Rule(rf"{source}\.num_batches_tracked", None)]


def conv_norm_rules(conv: str, norm: str, target: str) -> list[Rule]:
    """A `ConvNorm`."""
    return [Rule(rf"{conv}\.weight", f"{target}/conv/kernel", "conv"), *norm_rules(norm, f"{target}/norm")]


def _stage_rules(prefix: str) -> list[Rule]:
    rules = []
    for stage in range(MAX_STAGES):
        block, target = rf"{prefix}layer{stage + 1}\.(\d+)", rf"backbone/stages/{stage}/\1"
        for i in (1, 2, 3):
            rules += conv_norm_rules(rf"{block}\.conv{i}", rf"{block}\.bn{i}", f"{target}/conv{i}")
        rules += conv_norm_rules(rf"{block}\.downsample\.0", rf"{block}\.downsample\.1", f"{target}/shortcut")
    return rules


def deep_stem_rules(prefix: str = "") -> list[Rule]:
    """The names of UniMatch and SemiOVS, behind a prefix (a pattern): three 3x3 convolutions for a stem."""
    return [
        *conv_norm_rules(rf"{prefix}conv1\.0", rf"{prefix}conv1\.1", "backbone/stem/0"),
        *conv_norm_rules(rf"{prefix}conv1\.3", rf"{prefix}conv1\.4", "backbone/stem/1"),
        *conv_norm_rules(rf"{prefix}conv1\.6", rf"{prefix}bn1", "backbone/stem/2"),
        *_stage_rules(prefix),
    ]


def plain_stem_rules(prefix: str = "") -> list[Rule]:
    """The names of torchvision and timm, behind a prefix (a pattern): one 7x7 convolution for a stem."""
    return [*conv_norm_rules(rf"{prefix}conv1", rf"{prefix}bn1", "backbone/stem/0"), *_stage_rules(prefix)]


def _hugging_face_rules() -> list[Rule]:
    stem = r"(?:resnet\.)?embedder\.embedder"
    block, target = r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)", r"backbone/stages/\1/\2"
    parts = {r"shortcut": "shortcut", **{rf"layer\.{i}": f"conv{i + 1}" for i in range(3)}}
    return [
        *conv_norm_rules(rf"{stem}\.convolution", rf"{stem}\.normalization", "backbone/stem/0"),
        *(
            rule
            for theirs, ours in parts.items()
            for rule in conv_norm_rules(
                rf"{block}\.{theirs}\.convolution", rf"{block}\.{theirs}\.normalization", f"{target}/{ours}"
            )
        ),
    ]


@dataclass(frozen=True)
class Origin:
    """The names that a publisher of ResNets gives to the tensors.

    Attributes:
      publishers: who uses these names.
      stem: pattern of the name of the stem's first kernel, which only these names have.
      rules: of the backbone and of the classifier, which is dropped.
    """

    publishers: str
    stem: str
    rules: Sequence[Rule]


ORIGINS = (
    Origin(
        "UniMatch and SemiOVS, and timm's resnet50s",
        r"conv1\.0\.weight",
        [*deep_stem_rules(), Rule(r"fc\.(weight|bias)", None)],
    ),
    Origin("torchvision and timm", r"conv1\.weight", [*plain_stem_rules(), Rule(r"fc\.(weight|bias)", None)]),
    Origin(
        "Hugging Face",
        r"(resnet\.)?embedder\.embedder\.convolution\.weight",
        [*_hugging_face_rules(), Rule(r"classifier\.1\.(weight|bias)", None)],
    ),
)


def find_origin(source: Mapping[str, Any], *, name: str = "weights") -> Origin:
    """Recognizes the names of a backbone's state dict.

    Args:
      source: Anything by published name.
      name: The file that `source` comes from, for the error message.

    Raises:
      InputError: Not the names of a ResNet that is known.
    """
    if any(re.fullmatch(_POOLED_SHORTCUT, key) for key in source):
        raise InputError(
            f"{name}: a ResNet-D, whose shortcuts pool (`layer2.0.downsample.2.weight`); its architecture is not here; "
            "take torchvision's or timm's resnet18, resnet34, resnet50 or resnet101"
        )
    for origin in ORIGINS:
        if any(re.fullmatch(origin.stem, key) for key in source):
            return origin
    raise InputError(
        f"{name}: no `conv1.0.weight` (deep stem: the resnet50.pth or resnet101.pth that the UniMatch and SemiOVS "
        "repositories link to), no `conv1.weight` (torchvision, timm) and no "
        "`resnet.embedder.embedder.convolution.weight` (Hugging Face); give a ResNet of one of them"
    )


def infer_resnet(shapes: Mapping[str, tuple[int, ...]], *, name: str = "weights") -> Architecture:
    """Infers depths and widths of a ResNet.

    Args:
      shapes: Shapes of the tensors by our "/" paths, below "backbone".
      name: The file that they come from, for the error message.

    Returns:
      The architecture. Its last stage is dilated, and its decoder is the default: shapes do not determine them.

    Raises:
      InputError: The stem, or a convolution in the first block of a stage, is missing.
    """
    blocks = [re.match(r"backbone/stages/(\d+)/(\d+)/conv(\d)/conv/kernel", path) for path in shapes]
    found = [tuple(map(int, match.groups())) for match in blocks if match]
    stages = sorted({stage for stage, _, _ in found})
    is_bottleneck = any(conv == 3 for _, _, conv in found)
    stem = [path for i in range(3) if (path := f"backbone/stem/{i}/conv/kernel") in shapes]
    inner, last = ("conv2", "conv3") if is_bottleneck else ("conv1", "conv2")
    needed = ["backbone/stem/0/conv/kernel", f"backbone/stages/0/0/{last}/conv/kernel"]
    needed += [f"backbone/stages/{stage}/0/{inner}/conv/kernel" for stage in stages]
    if missing := [path for path in needed if path not in shapes]:
        raise InputError(
            f"{name}: a ResNet without {', '.join(missing)}; it is cut short, or another network: fetch it again"
        )

    def channels(stage: int, conv: str) -> int:
        return shapes[f"backbone/stages/{stage}/0/{conv}/conv/kernel"][-1]

    return Architecture(
        tuple(1 + max(block for s, block, _ in found if s == stage) for stage in stages),
        stem_widths=tuple(shapes[path][-1] for path in stem),
        widths=tuple(channels(stage, inner) for stage in stages),
        expansion=channels(0, last) // channels(0, inner),
        dilate=tuple(stage == stages[-1] for stage in stages[1:]),
        block="bottleneck" if is_bottleneck else "basic",
        stem_kernel=shapes[stem[0]][0],
    )


def convert_resnet(source: Mapping[str, np.ndarray], name: str) -> Converted:
    """Converts an ImageNet backbone: `--kind=resnet`.

    Args:
      source: State dict of a ResNet of any depth, with the names of one of `ORIGINS`.
      name: The file that `source` comes from, for error messages.

    Returns:
      Values below `backbone/`, and the dropped keys (the classifier, step counters).

    Raises:
      InputError: Another network, or an extra or missing tensor or one of a wrong shape.
    """
    origin = find_origin(source, name=name)
    architecture = infer_resnet(target_shapes(source, origin.rules), name=name)
    backbone = nnx.eval_shape(lambda: architecture.build_backbone(rngs=nnx.Rngs(0)))
    _, params, batch_stats = Functional.create(backbone)
    target = flatten({"backbone": params}) | flatten({"backbone": batch_stats})
    return convert(source, origin.rules, target, name=name)


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
    backbones = [{"backbone": tree["backbone"]} for tree in (params, batch_stats)]
    values = match_exactly(_read(path), flatten(backbones[0]) | flatten(backbones[1]), name=path)
    loaded = [fill(tree, values) for tree in backbones]
    return {**params, **loaded[0]}, {**batch_stats, **loaded[1]}


def read_architecture(path: str) -> Architecture:
    """The architecture of a file of kind "resnet", as `infer_resnet`; raises InputError for another file."""
    return infer_resnet({key: value.shape for key, value in _read(path).items()}, name=path)


def _read(path: str) -> dict[str, np.ndarray]:
    values, metadata = load_weights(path)
    if metadata.get("kind") != "resnet":
        raise InputError(
            f"{path}: holds weights of kind {metadata.get('kind')!r}, config.model.weights needs kind 'resnet'; "
            "convert a backbone with `python -m semiovs_jax.convert SOURCE OUT --kind=resnet`"
        )
    return values


KINDS: dict[str, Converter] = {"resnet": convert_resnet}
