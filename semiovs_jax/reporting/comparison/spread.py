"""Mean and standard deviation of the mIoU of several runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from semiovs_jax.reporting.comparison.read import ComparedRun

EVALUATIONS = ("best", "last")  # attributes of `ComparedRun`


class Spread(NamedTuple):
    """How scores of several runs are distributed.

    Attributes:
      n: number of runs that have a score.
      mean: of the scores; None without one.
      std: sample standard deviation; None of fewer than two.
    """

    n: int
    mean: float | None
    std: float | None


def spread_of(runs: Sequence[ComparedRun], evaluation: str) -> Spread:
    """The spread of the mIoU, a share in [0, 1].

    Args:
      runs: the runs; those without an evaluation are left out.
      evaluation: one of `EVALUATIONS`.
    """
    found: list[Mapping[str, Any] | None] = [getattr(run, evaluation) for run in runs]
    scores = [entry["miou"] for entry in found if entry]
    mean = statistics.mean(scores) if scores else None
    return Spread(len(scores), mean, statistics.stdev(scores) if len(scores) > 1 else None)
