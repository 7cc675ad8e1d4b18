"""Learning curves: plots the metrics log."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.files import whole_file
from semiovs_jax.reporting import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]


def draw_curves(records: Records, path: Path) -> None:
    """Plots losses, shares of confident pixels and mIoU over the steps.

    Args:
      records: lines of the metrics log (`metrics_log.read_records`).
      path: the PNG file, which is written atomically.
    """
    from matplotlib.figure import Figure  # half a second, which a run with faults need not wait for

    train = [record for record in records if record["event"] == "train"]
    evaluations = [record for record in records if record["event"] == "eval"]
    figure = Figure(figsize=(8, 10), layout="constrained", dpi=110)
    losses, gates, scores = figure.subplots(3, 1, sharex=True)

    _draw(losses, train, lambda name: name.startswith("loss"), main="loss")
    losses.set(title="losses", ylabel="cross-entropy", ylim=(0, None))
    _draw(gates, train, lambda name: name.startswith(("mask_ratio", "passed_")), main="mask_ratio")
    gates.set(title="share of pixels above the confidence threshold", ylabel="share", ylim=(-0.02, 1.02))
    _draw_scores(scores, evaluations)
    scores.set(title="validation", xlabel="step", ylabel="mIoU, %", ylim=(0, None))
    for axes in (losses, gates, scores):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        else:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", color="gray")

    with whole_file(path) as part:
        figure.savefig(part, format="png")


def _draw(axes: "Axes", records: Records, wanted: Callable[[str], bool], main: str) -> None:
    names = dict.fromkeys(name for record in records for name in record if wanted(name))
    for name in names:
        logged = [record for record in records if record.get(name) is not None]
        steps, values = ([record[key] for record in logged] for key in ("step", name))
        emphasis = {"color": "black", "linewidth": 2.0, "zorder": 3} if name == main else {"linewidth": 1.2}
        axes.plot(steps, values, label=name, marker="o", markersize=2.5, **emphasis)


def _draw_scores(axes: "Axes", evaluations: Records) -> None:
    if not evaluations:
        return
    steps = [record["step"] for record in evaluations]
    means = [100 * record["miou"] for record in evaluations]
    present = [100 * record["miou_present"] for record in evaluations]
    axes.plot(steps, means, "o-", color="black", markersize=4, label="mIoU, all classes")
    if present != means:
        axes.plot(steps, present, "o--", color="gray", markersize=3, label="mIoU, classes present")
    best = steps.index(table.best_of(evaluations)["step"])
    for index, name, color, size in ((best, "best", "tab:green", 13), (len(means) - 1, "last", "tab:blue", 9)):
        label = f"{name}: {means[index]:.2f} at {steps[index]}"
        axes.plot(steps[index], means[index], "o", color=color, markersize=size, fillstyle="none", label=label)
