"""The best checkpoint of a run, one rule for checkpoints, tables and curves."""

from collections.abc import Mapping
from typing import NamedTuple


class Best(NamedTuple):
    """The evaluated step with the highest mIoU."""

    step: int
    miou: float


def find_best(scores: Mapping[int, float]) -> Best | None:
    """The highest mIoU, and the earliest step among equal ones: a later one has to be better, as in the reference.

    Args:
      scores: mIoU by step.

    Returns:
      The best step; None without scores.
    """
    if not scores:
        return None
    step = max(scores, key=lambda step: (scores[step], -step))
    return Best(step, scores[step])
