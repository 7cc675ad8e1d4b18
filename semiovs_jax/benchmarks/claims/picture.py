"""The picture of the claims."""

from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.files import whole_file
from semiovs_jax.benchmarks.claims.judge import Results, spread
from semiovs_jax.benchmarks.claims.rows import LABELED, OOD, OURS, ROWS, with_labels, with_ood

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By what a row has beside labels: nothing, unlabeled images, OVS labels, too. Okabe and Ito 2008.
_COLORS = {"supervised": "#999999", "alone": "#56B4E9", "ovs": "#D55E00"}


def draw_claims(results: Results, path: Path) -> None:
    """Draws the last mIoU of all rows that have run, with standard deviations: methods, OOD images, labels.

    Args:
      results: the runs.
      path: the PNG file, which is written atomically.
    """
    from matplotlib.figure import Figure  # half a second

    figure = Figure(figsize=(13, 4.6), layout="constrained", dpi=110)
    methods, ood, labels = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    run = {name: spread(runs, "last") for name, runs in results.items() if runs}
    rows = [name for name in run if ROWS[name].group == "methods"][::-1]
    means, deviations = [100 * run[name][0] for name in rows], [100 * run[name][1] for name in rows]
    methods.barh(rows, means, xerr=deviations, color=[_COLORS[_kind(name)] for name in rows], ecolor="black", capsize=3)
    methods.set(xlabel="mIoU, %", xlim=(0, 100), title=f"{LABELED[0]} labeled images")

    _line(ood, run, {count: with_ood(count) for count in OOD}, OURS, _COLORS["ovs"])
    ood.set(xscale="log", xlabel="OOD images", ylabel="mIoU, %", title="more OOD images")
    for name, kind in (("supervised", "supervised"), ("UniMatch", "alone"), (OURS, "ovs")):
        _line(labels, run, {count: with_labels(name, count) for count in LABELED}, name, _COLORS[kind])
    labels.set(xscale="log", xlabel="labeled images", ylabel="mIoU, %", title="more labels")
    for axes, ticks in ((ood, OOD), (labels, LABELED)):
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
    labels.legend(frameon=False)
    for axes in (methods, ood, labels):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def _line(axes: "Axes", run: dict[str, tuple[float, float]], rows: dict[int, str], label: str, color: str) -> None:
    found = {count: run[name] for count, name in rows.items() if name in run}
    means, deviations = ([100 * value[index] for value in found.values()] for index in (0, 1))
    axes.errorbar(list(found), means, yerr=deviations, marker="o", capsize=3, label=label, color=color)


def _kind(name: str) -> str:
    changes = ROWS[name].changes
    if changes.get("method.name") == "supervised":
        return "supervised"
    return "ovs" if changes["method.ood"] == "ovs" else "alone"
