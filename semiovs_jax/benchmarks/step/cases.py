"""What the comparison of train steps measures: methods, models, sizes, precisions, and the config of each."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import ml_collections

from semiovs_jax.runtime.config_files import load_config

OURS, EAGER, COMPILED = "ours", "torch", "torch.compile"  # sides: our step, and the forms of the step in PyTorch
METHODS = ("supervised", "unimatch", "prevmatch", "semivl")
VIT_BACKBONE = "clip_vit_b16"  # of SemiVL, whatever backbones the other methods have

# Where in a run the steps are, so that every term has a weight: PrevMatch's is 0 in the first epoch.
FIRST_STEP, STEPS_PER_EPOCH, TOTAL_STEPS = 20_000, 1_000, 80_000
DRAWN_SNAPSHOTS = 2  # that label each batch: the mean of the reference's 1 to 3


@dataclasses.dataclass(frozen=True)
class Precision:
    """The precision of a step.

    Attributes:
      dtype: `config.model.dtype`.
      products: `config.model.matmul_precision`.
      torch: the name of the same for the step in PyTorch.
      loss_tolerance: relative difference of two losses that rounding explains.
    """

    dtype: str
    products: str
    torch: str
    loss_tolerance: float


PRECISIONS = {
    "float32": Precision("float32", "highest", "float32", 1e-3),
    "tf32": Precision("float32", "default", "tf32", 1e-2),
    "bfloat16": Precision("bfloat16", "default", "amp", 5e-2),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the comparison.

    Attributes:
      method: one of `METHODS`.
      ood: whether OOD images with OVS labels from a cache are learned, too.
      backbone: `config.model.backbone`.
      crop_size: side of the images, in pixels.
      batch_size: images of each stream.
      precision: a key of `PRECISIONS`.
      remat: `config.model.remat` of our step.
    """

    method: str
    ood: bool
    backbone: str
    crop_size: int
    batch_size: int
    precision: str
    remat: str = "none"

    def __str__(self) -> str:
        method = f"{self.method}{'+ood' if self.ood else ''}"
        remat = "" if self.remat == "none" else f" remat={self.remat}"
        return f"{method} {self.backbone} {self.crop_size}px b{self.batch_size} {self.precision}{remat}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The values of each field of a `Case`; all combinations are measured that exist."""

    methods: Sequence[str]
    ood: Sequence[bool]
    backbones: Sequence[str]
    crop_sizes: Sequence[int]
    batch_sizes: Sequence[int]
    precisions: Sequence[str]
    remats: Sequence[str] = ("none",)

    def cases(self) -> Iterator[Case]:
        """The cases. Supervised training has no OOD images, and SemiVL has one backbone."""
        for method in self.methods:
            ood = [False] if method == "supervised" else self.ood
            backbones = [VIT_BACKBONE] if method == "semivl" else self.backbones
            sizes = self.crop_sizes, self.batch_sizes
            for values in itertools.product(ood, backbones, *sizes, self.precisions, self.remats):
                yield Case(method, *values)


# By platform. On the CPU, TF32 is float32, and bfloat16 is converted to it and back.
DEFAULTS = {
    "cpu": Choice(METHODS, (False, True), ("resnet50", "resnet101"), (161, 321), (2,), ("float32",)),
    "gpu": Choice(METHODS, (False, True), ("resnet101",), (321,), (8, 16), tuple(PRECISIONS)),
}


def case_config(case: Case) -> ml_collections.ConfigDict:
    """The published config of the case's method, with its sizes, and random weights.

    The thresholds are 0, so that with random weights, too, every term has a loss. This does not change the work.
    """
    config = load_config(f"configs/voc.py:92,{case.method}").unlock()
    precision = PRECISIONS[case.precision]
    config.update_from_flattened_dict(
        {
            "batch_size": case.batch_size,
            "data.crop_size": case.crop_size,
            "model.backbone": case.backbone,
            "model.random_init": True,
            "model.dtype": precision.dtype,
            "model.matmul_precision": precision.products,
            "model.remat": case.remat,
            "method.ood": "ovs" if case.ood else "none",
            "method.confidence_threshold": 0.0,
            "method.snapshots.confidence_threshold": 0.0,
            "method.maskclip.confidence_threshold": 0.0,
            "clip.dtype": precision.dtype,
            "clip.matmul_precision": precision.products,
            "train.steps": TOTAL_STEPS,
        }
    )
    return config.lock()
