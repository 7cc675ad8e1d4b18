"""The table of the runs, and whether each claim holds."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from semiovs_jax.benchmarks.claims.rows import LABELED, NAIVE, OOD, OURS, with_labels, with_ood

Run = Mapping[str, Any]
"""One run: its "seed", "last" and "best" mIoU in 0..1, "seconds", and the "fingerprint" of what was trained."""

Runs = Sequence[Run]
"""Of one row, a run for each seed."""

Results = Mapping[str, Runs]
"""By row."""

SCORES = ("last", "best")


class Claim(NamedTuple):
    """A claim.

    Attributes:
      text: what it says.
      rows: that it is about.
      holds: whether it does, by the runs of these rows.
    """

    text: str
    rows: tuple[str, ...]
    holds: Callable[..., bool]


def spread(runs: Runs, key: str) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; 0 with one seed."""
    values = np.array([run[key] for run in runs])
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def above(ours: Runs, *others: Runs) -> bool:
    """Whether the last and the best mIoU are higher than all others by more than both standard deviations."""

    def beats(other: Runs, key: str) -> bool:
        (mean, deviation), (less, its_deviation) = spread(ours, key), spread(other, key)
        return mean - less > max(deviation, its_deviation)

    return all(beats(other, key) for other in others for key in SCORES)


def level(ours: Runs, other: Runs) -> bool:
    """Whether the last and the best mIoU differ by no more than the larger standard deviation."""
    pairs = [(spread(ours, key), spread(other, key)) for key in SCORES]
    return all(
        abs(mean - its_mean) <= max(deviation, its_deviation) for (mean, deviation), (its_mean, its_deviation) in pairs
    )


def shrinking(*pairs: Runs) -> bool:
    """Whether the gain of each second run over the first before it falls from pair to pair."""
    gains = [
        spread(ours, "last")[0] - spread(base, "last")[0] for base, ours in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return all(more > less for more, less in itertools.pairwise(gains))


def _above(ours: str, *others: str) -> Claim:
    return Claim(f"{ours} above {'; '.join(others)}", (ours, *others), above)


CLAIMS = (
    _above("UniMatch", "supervised"),
    _above(OURS, "UniMatch", NAIVE),
    _above("PrevMatch", "supervised"),
    _above(f"{OURS} on PrevMatch", "PrevMatch"),
    _above("SemiVL", "supervised, SemiVL's student"),
    _above(f"{OURS} on SemiVL", "SemiVL"),
    _above(OURS, f"{OURS}, MaskCLIP labels"),
    Claim("labels online level with labels from a cache", (f"{OURS}, online labels", OURS), level),
    *(_above(with_ood(more), with_ood(less)) for less, more in itertools.pairwise(OOD)),
    Claim(
        f"OVS labels gain less with more labels: {', '.join(map(str, LABELED))}",
        tuple(with_labels(name, count) for count in LABELED for name in ("UniMatch", OURS)),
        shrinking,
    ),
)


def judge(results: Results) -> dict[str, bool]:
    """Whether each claim holds, by its text, on the seeds that all of its rows have; without any, it is left out."""
    holds = {}
    for claim in CLAIMS:
        rows = [results.get(row, ()) for row in claim.rows]
        shared = set.intersection(*({run["seed"] for run in runs} for runs in rows))
        if shared:
            holds[claim.text] = claim.holds(*([run for run in runs if run["seed"] in shared] for runs in rows))
    return holds


def format_results(results: Results) -> str:
    """Formats a table: mean and sample standard deviation over seeds, mIoU in percent."""
    run = {name: runs for name, runs in results.items() if runs}
    width = max(map(len, run))
    lines = [f"{'mIoU (%)':<{width}}   last          best          seeds  seconds a run"]
    for name, runs in run.items():
        cells = [
            f"{100 * mean:5.2f} ± {100 * deviation:4.2f}" for mean, deviation in (spread(runs, key) for key in SCORES)
        ]
        lines.append(f"{name:<{width}}   {'  '.join(cells)}  {len(runs):5}  {spread(runs, 'seconds')[0]:13.0f}")
    return "\n".join(lines)
