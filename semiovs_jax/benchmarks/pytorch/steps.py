"""One update of supervised training, UniMatch, PrevMatch and SemiVL in PyTorch, from given views.

Order and detail follow `semiovs/semiovs_{unimatch,prevmatch}.py` and `semiovs_semivl/semivl.py` of
wooseok-shin/SemiOVS, in a fast form: nothing waits for the device, and a prediction's log-probabilities are computed
once for all its labels.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from semiovs_jax.benchmarks.pytorch import consistency
from semiovs_jax.benchmarks.pytorch.consistency import Logits, Rule, Target
from semiovs_jax.benchmarks.pytorch.deeplab import STAGE_SIZES, DeepLabV3Plus
from semiovs_jax.benchmarks.pytorch.placed import Placed
from semiovs_jax.benchmarks.pytorch.settings import Constants, Settings, published_constants
from semiovs_jax.benchmarks.pytorch.student import Student

_SNAPSHOT_NOISE = 0.01  # relative, so that snapshots differ from the student and from each other


def build_student(settings: Settings) -> Student:
    """The student of published size, with random weights."""
    return DeepLabV3Plus(settings.num_classes, STAGE_SIZES[settings.backbone])


class TorchStep:
    """One update of a method.

    The precision of products is a setting of the process: the latest step's holds.

    Args:
      settings: what is measured.
      seed: of the random weights.
      constants: of the method; by default `published_constants`.
      build: makes the student, in the floating-point type of the step.
    """

    def __init__(
        self,
        settings: Settings,
        seed: int = 0,
        *,
        constants: Constants | None = None,
        build: Callable[[Settings], Student] = build_student,
    ):
        torch.manual_seed(seed)
        _set_precision(settings.precision)
        self.settings = settings
        self.constants = constants or published_constants(settings.method)
        self._student = self._on_device(build(settings))
        self._dtype = next(self._student.parameters()).dtype
        count = self.constants.snapshots if settings.method == "prevmatch" else 0
        self._snapshots = [_changed_copy(self._student) for _ in range(count)]
        self._optimizer = self._make_optimizer()
        self._step = self.constants.first_step
        self._losses = consistency.consistency_losses
        if settings.compiled:
            self._losses = torch.compile(self._losses, dynamic=False)
            for network in (self._student, *self._snapshots):
                network.compile(dynamic=False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The student's parameters and running statistics by published name."""
        return self._student.state_dict()

    def snapshot_state_dicts(self) -> list[dict[str, torch.Tensor]]:
        """Those of PrevMatch's snapshots, by slot."""
        return [snapshot.state_dict() for snapshot in self._snapshots]

    def place(self, views: Mapping[str, np.ndarray]) -> Placed:
        """Copies the arrays of `flat_views.flatten_views` to the device."""
        return Placed.create(views, self.settings.device, self._dtype, channels_last=self.settings.channels_last)

    def loss(self, views: Placed) -> float:
        """The loss of the next update; parameters and running statistics stay the same."""
        buffers = {name: buffer.clone() for name, buffer in self._student.named_buffers()}
        value = self._total(views).item()
        for name, buffer in self._student.named_buffers():
            buffer.copy_(buffers[name])
        return value

    def update(self, views: Placed) -> None:
        """One update; it returns before the device is done."""
        self._total(views).backward()
        rate = self.constants.learning_rate_at(self._step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["multiplier"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.settings.device == "cuda":
            torch.cuda.synchronize()

    def _on_device(self, network: Student) -> Student:
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return nn.utils.convert_conv2d_weight_memory_format(network.to(self.settings.device), layout)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        constants = self.constants
        multipliers = {"backbone": constants.backbone_multiplier, "head": constants.head_multiplier}
        groups = [
            {"params": values, "multiplier": multipliers[name]}
            for name, values in self._student.parameter_groups().items()
        ]
        if constants.adamw:
            return torch.optim.AdamW(groups, weight_decay=constants.weight_decay, fused=True)
        return torch.optim.SGD(groups, momentum=constants.momentum, weight_decay=constants.weight_decay, fused=True)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.settings.precision != "amp":
            return contextlib.nullcontext()
        return torch.autocast(self.settings.device, torch.bfloat16)

    def _total(self, views: Placed) -> torch.Tensor:
        if self.settings.method == "supervised":
            with self._autocast():
                return consistency.supervised_loss(self._student.train()(views.weak["labeled"]), views.label)
        # Autocast keeps the weights that it has cast until it ends: those of a forward without gradient have none.
        with torch.no_grad(), self._autocast():
            frozen = self._frozen_labels(views)
        with self._autocast():
            labeled, logits, own = self._predict(views)
            rules = self._rules(views, own, frozen)
            supervised = consistency.supervised_loss(labeled, views.label)
            losses = self._losses(logits, list(rules.values()), (views.box1, views.box2))
        return self._weighted(supervised, dict(zip(rules, losses, strict=True)))

    def _frozen_labels(self, views: Placed) -> dict[str, Target]:
        """Labels by networks in eval mode: the student's of the mix stream, the snapshots' of both."""
        mix, valid = views.weak["mix"], [views.valid["unlabeled"], views.valid["mix"]]
        labels = {"mix": consistency.label(self._student.eval()(mix), valid[1])}
        images = torch.cat([views.weak["unlabeled"], mix])
        if self._snapshots:
            parts = [weight * self._snapshots[slot](images) for slot, weight in views.draw]
            of_unlabeled, of_mix = sum(parts[1:], start=parts[0]).chunk(2)
            labels["snapshots"] = consistency.label(of_unlabeled, valid[0])
            labels["snapshots_mix"] = consistency.label(of_mix, valid[1])
        return labels

    def _predict(self, views: Placed) -> tuple[torch.Tensor, dict[str, Logits], Target]:
        """All train-mode forward passes: logits of the labeled views, of the others, and the student's labels."""
        self._student.train()
        streams = ("unlabeled", "ood") if self.settings.ood else ("unlabeled",)
        strong = {stream: _mixed(views, stream) for stream in streams}
        joint = torch.cat([views.weak[stream] for stream in ("labeled", *streams)])
        clean, dropped = self._student(joint, views.channel_masks).chunk(2)
        labeled, unlabeled, *_ = clean.chunk(1 + len(streams))
        perturbed = dropped.chunk(1 + len(streams))[1:]
        logits = {
            stream: _stream_logits(self._student(strong[stream]), fp)
            for stream, fp in zip(streams, perturbed, strict=True)
        }
        return labeled, logits, consistency.label(unlabeled.detach(), views.valid["unlabeled"])

    def _rules(self, views: Placed, own: Target, frozen: Mapping[str, Target]) -> dict[str, Rule]:
        constants = self.constants
        rules = {"student": Rule("unlabeled", own, frozen["mix"], constants.threshold)}
        if "snapshots" in frozen:
            labels = frozen["snapshots"], frozen["snapshots_mix"]
            rules["snapshots"] = Rule("unlabeled", *labels, constants.snapshot_threshold)
        if self.settings.ood:
            assert views.ovs is not None
            rules["ovs"] = Rule("ood", views.ovs, own, constants.threshold)
        return rules

    def _weighted(self, supervised: torch.Tensor, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        constants = self.constants
        weights = {
            "student": 1.0,
            "snapshots": constants.snapshot_weight_at(self._step),
            "ovs": constants.ood_weight,
        }
        total = sum((weights[name] * loss for name, loss in losses.items()), start=supervised)
        return total / (1 + sum(weights[name] for name in losses))


def _set_precision(precision: str) -> None:
    exact = precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
    torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = True


def _changed_copy(network: Student) -> Student:
    """A frozen copy with slightly different parameters, in eval mode."""
    changed = copy.deepcopy(network).eval().requires_grad_(False)
    for value in changed.parameters():
        value.mul_(1 + _SNAPSHOT_NOISE * torch.randn_like(value))
    return changed


def _stream_logits(strong: torch.Tensor, fp: torch.Tensor) -> Logits:
    s1, s2 = strong.chunk(2)
    return Logits(s1, s2, fp)


def _mixed(views: Placed, stream: str) -> torch.Tensor:
    """Both CutMix-ed strong views of a stream, [2 N, 3, H, W]."""
    partner = {"unlabeled": "mix", "ood": "unlabeled"}[stream]
    pairs = ((views.s1, views.box1), (views.s2, views.box2))
    return torch.cat([consistency.paste(images[stream], images[partner], box) for images, box in pairs])
