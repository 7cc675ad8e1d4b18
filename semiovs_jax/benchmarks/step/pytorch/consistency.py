"""Pseudo-labels, CutMix and the losses of UniMatch and its descendants, as one graph without host synchronization.

Reference: `semiovs/semiovs_unimatch.py`. Logits are [N, K, H, W]; labels, confidences and masks are [N, H, W].
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from semiovs_jax.benchmarks.step.flat_views import IGNORE_INDEX

SHARES = (0.25, 0.25, 0.5)  # of both strong views and of the perturbed features


class Target(NamedTuple):
    """Pseudo-labels: classes as int64, their probabilities, and False in `valid` where there is nothing to learn."""

    label: torch.Tensor
    confidence: torch.Tensor
    valid: torch.Tensor


class Logits(NamedTuple):
    """Predictions of a stream: of both CutMix-ed strong views, and of the weak view with perturbed features."""

    s1: torch.Tensor
    s2: torch.Tensor
    fp: torch.Tensor


class Rule(NamedTuple):
    """One kind of pseudo-label for a stream.

    Attributes:
      stream: the stream that is learned.
      own: labels of its weak view.
      other: labels of the weak view of its CutMix partner.
      threshold: least confidence of a pixel with loss.
      over_all: whether invalid pixels count in the mean.
    """

    stream: str
    own: Target
    other: Target
    threshold: float
    over_all: bool = False


def label(logits: torch.Tensor, valid: torch.Tensor) -> Target:
    """The most probable class of each pixel."""
    confidence, chosen = F.softmax(logits, dim=1, dtype=_wide(logits)).max(dim=1)
    return Target(chosen, confidence, valid)


def paste(target: torch.Tensor, source: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """CutMix: `source` inside `box`, bool [N, H, W], else `target`. Images are [N, 3, H, W]."""
    return torch.where(box if target.ndim == box.ndim else box[:, None], source, target)


def supervised_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labeled pixels."""
    return F.cross_entropy(logits.to(_wide(logits)), target, ignore_index=IGNORE_INDEX)


def consistency_losses(
    logits: dict[str, Logits], rules: list[Rule], boxes: tuple[torch.Tensor, torch.Tensor]
) -> list[torch.Tensor]:
    """The loss of each rule, the weighted mean over its three predictions.

    Args:
      logits: by stream.
      rules: which labels are learned.
      boxes: CutMix boxes of the strong views.
    """
    log_probabilities = {
        stream: Logits(*(F.log_softmax(x, dim=1, dtype=_wide(x)) for x in given)) for stream, given in logits.items()
    }
    return [_rule_loss(log_probabilities[rule.stream], rule, boxes) for rule in rules]


def _rule_loss(predictions: Logits, rule: Rule, boxes: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    mixed = [Target(*(paste(*planes, box) for planes in zip(rule.own, rule.other, strict=True))) for box in boxes]
    losses = [_gated_mean(*pair, rule) for pair in zip(predictions, (*mixed, rule.own), strict=True)]
    return sum((share * loss for share, loss in zip(SHARES, losses, strict=True)), start=torch.zeros_like(losses[0]))


def _gated_mean(log_probabilities: torch.Tensor, target: Target, rule: Rule) -> torch.Tensor:
    loss = F.nll_loss(log_probabilities, target.label, reduction="none")
    kept = loss * (target.valid & (target.confidence >= rule.threshold))
    return kept.mean() if rule.over_all else kept.sum() / target.valid.sum()


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
