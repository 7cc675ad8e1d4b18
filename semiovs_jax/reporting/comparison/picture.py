"""The curves of several runs in one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.files import whole_file
from semiovs_jax.reporting.comparison.read import ComparedRun, groups_of_seeds

# Colors that the color-blind can tell apart (Okabe and Ito 2008, "Color Universal Design"), without yellow, which is
# faint on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")
_LONG_NAME = 45  # characters; the legend of longer names has one column


def draw_comparison(runs: Sequence[ComparedRun], path: Path) -> None:
    """Plots the mIoU and the training loss of all runs over the steps.

    Runs that differ in the seed alone have one color, and lines of their own. Beyond 7 groups, markers differ, too.

    Args:
      runs: the runs.
      path: the PNG file, which is written atomically.

    Raises:
      InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second

    columns = 1 if max(len(run.name) for run in runs) > _LONG_NAME else 2
    figure = Figure(figsize=(11, 4.4 + 0.22 * -(-len(runs) // columns)), layout="constrained", dpi=110)
    scores, losses = figure.subplots(1, 2)
    handles = []
    for group, members in enumerate(groups_of_seeds(runs)):
        color, marker = _COLORS[group % len(_COLORS)], _MARKERS[group // len(_COLORS) % len(_MARKERS)]
        for member, run in enumerate(members):
            style: dict[str, Any] = {"color": color, "linestyle": _LINES[member % len(_LINES)]}
            steps, mious = _series(run.evaluations, "miou", 100)
            (line,) = scores.plot(steps, mious, marker=marker, markersize=4, linewidth=1.6, **style)
            train = [entry for entry in run.records if entry["event"] == "train"]
            losses.plot(*_series(train, "loss", 1), marker=marker, markersize=2, linewidth=1.2, **style)
            handles.append((line, run.name))
    scores.set(title="validation", xlabel="step", ylabel="mIoU, %", ylim=(0, None))
    losses.set(title="training loss, all terms of the method", xlabel="step", ylabel="loss", ylim=(0, None))
    for axes in (scores, losses):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(*zip(*handles, strict=True), loc="outside lower left", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def _series(records: Sequence[Mapping[str, Any]], name: str, factor: float) -> tuple[list[int], list[float]]:
    logged = [record for record in records if record.get(name) is not None]
    return [record["step"] for record in logged], [factor * record[name] for record in logged]
