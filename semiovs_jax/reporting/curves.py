"""Learning curves: plots the metrics log."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.files import whole_file
from semiovs_jax.methods.table import Method
from semiovs_jax.reporting import table
from semiovs_jax.reporting.metric_words import explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Sequence[Mapping[str, Any]]

_LEGEND_ROWS = 6


def draw_curves(records: Records, path: Path, method: Method | None = None) -> None:
    """Plots losses, shares of confident pixels and mIoU over the steps.

    Args:
      records: lines of the metrics log (`metrics_log.read_records`).
      path: the PNG file, which is written atomically.
      method: of the run, by which the legend explains the names of terms.
    """
    from matplotlib.figure import Figure  # half a second, which a run with faults need not wait for

    train = [record for record in records if record["event"] == "train"]
    evaluations = [record for record in records if record["event"] == "eval"]
    figure = Figure(figsize=(12, 13), dpi=110)
    # Room for the legends; a computed layout would draw everything twice.
    margins = {"left": 0.05, "right": 0.98, "top": 0.97, "bottom": 0.09, "hspace": 0.62}
    losses, gates, scores = figure.subplots(3, 1, sharex=True, gridspec_kw=margins)

    _draw(losses, train, lambda name: name.startswith("loss"), "loss", method)
    losses.set(title="losses", ylabel="cross-entropy", ylim=(0, None))
    _draw(gates, train, lambda name: name.startswith(("mask_ratio", "passed_")), "mask_ratio", method)
    gates.set(
        title="pixels that cause a loss: labels above the confidence threshold", ylabel="share", ylim=(-0.02, 1.02)
    )
    _draw_scores(scores, evaluations)
    scores.set(title="validation", xlabel="step", ylabel="mIoU, %")
    for axes in (losses, gates, scores):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=True)
        if handles := axes.get_legend_handles_labels()[0]:
            columns = -(-len(handles) // _LEGEND_ROWS)
            axes.legend(
                loc="upper left", bbox_to_anchor=(0, -0.12), ncols=columns, frameon=False, fontsize=8, borderaxespad=0
            )
        else:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", color="gray")

    with whole_file(path) as part:
        figure.savefig(part, format="png")


def _draw(axes: "Axes", records: Records, wanted: Callable[[str], bool], main: str, method: Method | None) -> None:
    names = dict.fromkeys(name for record in records for name in record if wanted(name))
    for name in names:
        if not (logged := [record for record in records if record.get(name) is not None]):
            continue
        steps, values = ([record[key] for record in logged] for key in ("step", name))
        emphasis = {"color": "black", "linewidth": 2.0, "zorder": 3} if name == main else {"linewidth": 1.2}
        # Not clipped: markers at the limits, of shares of 1 for instance, are drawn whole.
        label = explain(name, method)
        axes.plot(steps, values, label=label, marker="o", markersize=2.5, clip_on=False, **emphasis)


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
        label = f"{name}: {means[index]:.2f} at step {steps[index]}"
        ring: dict[str, Any] = {"color": color, "markersize": size, "fillstyle": "none", "clip_on": False}
        axes.plot(steps[index], means[index], "o", label=label, **ring)
    axes.margins(y=0.15)
