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

from semiovs_jax.benchmarks.step.pytorch import consistency
from semiovs_jax.benchmarks.step.pytorch.consistency import Logits, Rule, Target
from semiovs_jax.benchmarks.step.pytorch.deeplab import STAGE_SIZES, DeepLabV3Plus
from semiovs_jax.benchmarks.step.pytorch.placed import Placed
from semiovs_jax.benchmarks.step.pytorch.semivl import SemiVL
from semiovs_jax.benchmarks.step.pytorch.settings import Constants, Settings, published_constants
from semiovs_jax.benchmarks.step.pytorch.student import Student

_SNAPSHOT_NOISE = 0.01  # relative, so that snapshots differ from the student and from each other


def build_student(settings: Settings) -> Student:
    """The student of published size, with random weights."""
    if settings.backbone == "vit_b16":
        return SemiVL(settings.num_classes, settings.crop_size)
    return DeepLabV3Plus(settings.num_classes, STAGE_SIZES[settings.backbone])


class TorchStep:
    """One update of a method.

    The precision of products is a setting of the process: the latest step's holds.

    Args:
      settings: what is measured.
      seed: of the random weights.
      constants: of the method; by default `published_constants`.
      build: makes the student, in the floating-point type of the step.

    Attributes:
      settings, constants: as given.
      student: the trained network.
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
        _set_precision(settings)
        self.settings = settings
        self.constants = constants or published_constants(settings.method)
        self.student = self._on_device(build(settings))
        self._dtype = next(self.student.parameters()).dtype
        count = self.constants.snapshots if settings.method == "prevmatch" else 0
        self._snapshots = [_changed_copy(self.student) for _ in range(count)]
        self._optimizer = self._make_optimizer()
        self._step = self.constants.first_step
        self._losses = consistency.consistency_losses
        if settings.compiled:
            self._compile()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The student's parameters and running statistics by published name."""
        return self.student.state_dict()

    def snapshot_state_dicts(self) -> list[dict[str, torch.Tensor]]:
        """Those of PrevMatch's snapshots, by slot."""
        return [snapshot.state_dict() for snapshot in self._snapshots]

    def place(self, views: Mapping[str, np.ndarray]) -> Placed:
        """Copies the arrays of `flat_views.flatten_views` to the device."""
        return Placed.create(views, self.settings.device, self._dtype, channels_last=self.settings.channels_last)

    def loss(self, views: Placed) -> float:
        """The loss of the next update; parameters and running statistics stay the same."""
        buffers = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        value = self._total(views).item()
        for name, buffer in self.student.named_buffers():
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

    def _compile(self) -> None:
        self._losses = torch.compile(self._losses, dynamic=False)
        networks: list[nn.Module] = [self.student, *self._snapshots]
        if isinstance(self.student, SemiVL):
            networks.append(self.student.clip_encoder)
        for network in networks:
            network.compile(dynamic=False)

    def _on_device(self, network: Student) -> Student:
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return nn.utils.convert_conv2d_weight_memory_format(network.to(self.settings.device), layout)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        constants = self.constants
        multipliers = {"backbone": constants.backbone_multiplier, "head": constants.head_multiplier}
        groups = [
            {"params": values, "multiplier": multipliers[name]}
            for name, values in self.student.parameter_groups().items()
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
                return consistency.supervised_loss(self.student.train()(views.weak["labeled"]), views.label)
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
        """Labels by networks in eval mode: the student's of the mix stream; those of all others of both streams."""
        mix, valid = views.weak["mix"], [views.valid["unlabeled"], views.valid["mix"]]
        labels = {"mix": consistency.label(self.student.eval()(mix), valid[1])}
        images = torch.cat([views.weak["unlabeled"], mix])
        logits = {}
        if self._snapshots:
            parts = [weight * self._snapshots[slot](images) for slot, weight in views.draw]
            logits["snapshots"] = sum(parts[1:], start=parts[0])
        if isinstance(self.student, SemiVL):
            logits["maskclip"] = self.student.label_logits(images)
        for name, both in logits.items():
            of_unlabeled, of_mix = both.chunk(2)
            labels[name] = consistency.label(of_unlabeled, valid[0])
            labels[f"{name}_mix"] = consistency.label(of_mix, valid[1])
        return labels

    def _predict(self, views: Placed) -> tuple[torch.Tensor, dict[str, Logits], Target]:
        """All train-mode forward passes: logits of the labeled views, of the others, and the student's labels."""
        self.student.train()
        streams = ("unlabeled", "ood") if self.settings.ood else ("unlabeled",)
        strong = {stream: _mixed(views, stream) for stream in streams}
        joint = torch.cat([views.weak[stream] for stream in ("labeled", *streams)])
        clean, dropped = self.student(joint, views.channel_masks).chunk(2)
        labeled, unlabeled, *_ = clean.chunk(1 + len(streams))
        perturbed = dropped.chunk(1 + len(streams))[1:]
        logits = {
            stream: _stream_logits(self.student(strong[stream]), fp)
            for stream, fp in zip(streams, perturbed, strict=True)
        }
        return labeled, logits, consistency.label(unlabeled.detach(), views.valid["unlabeled"])

    def _rules(self, views: Placed, own: Target, frozen: Mapping[str, Target]) -> dict[str, Rule]:
        constants = self.constants
        rules = {"student": Rule("unlabeled", own, frozen["mix"], constants.threshold)}
        for name, threshold in (
            ("snapshots", constants.snapshot_threshold),
            ("maskclip", constants.maskclip_threshold),
        ):
            if name in frozen:
                labels = frozen[name], frozen[f"{name}_mix"]
                rules[name] = Rule("unlabeled", *labels, threshold, over_all=name == "maskclip")
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
        averaged = [name for name in losses if name in weights]
        total = supervised + sum(weights[name] * losses[name] for name in averaged)
        total = total / (1 + sum(weights[name] for name in averaged))
        if "maskclip" in losses:
            total = total + constants.maskclip_weight_at(self._step) * losses["maskclip"]
        return total


def _set_precision(settings: Settings) -> None:
    exact = settings.precision == "float32" or settings.device == "cpu"
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
