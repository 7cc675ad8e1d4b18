"""The table of the comparison of train steps."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from semiovs_jax.benchmarks.step.cases import OURS, Case

Row = Mapping[str, Any]  # of `step.measure_case`

LEGEND = """\
update: from given views. step: ours with making the views; PyTorch makes them in its loader. Times are medians of
rounds, in ms. Ratios are ours over PyTorch's update of the same round, medians (least to most), of seconds and of
core-seconds. host GB: the peak of updates, without compilation and imports. compile: of our step; of PyTorch, until
its first update is done. MFU: FLOPs of an update in which nothing is computed twice, with one of PrevMatch's two
snapshots, over the time and the fastest matrix product. d loss: relative difference of the first losses. PyTorch is the
faster form of each row."""


def rival(row: Row) -> str | None:
    """The side in PyTorch with the fastest updates; None without one."""
    others = [side for side in row["rounds"] if side != OURS]
    return min(others, key=lambda side: _median(row, side, "update", "seconds") or 0.0, default=None)


def ratios(row: Row, part: str, unit: str = "seconds") -> list[float]:
    """Ours over PyTorch's update in each round.

    Args:
      row: the case.
      part: of ours, "step" or "update".
      unit: "seconds" or "core_seconds".
    """
    other = rival(row)
    if other is None or OURS not in row["rounds"]:
        return []
    pairs = zip(row["rounds"][OURS], row["rounds"][other], strict=True)
    return [ours[part][unit] / theirs["update"][unit] for ours, theirs in pairs if part in ours]


def format_table(rows: Sequence[Row]) -> str:
    """One line a case."""
    lines = [["case", *_COLUMNS]]
    lines += [[str(Case(**row["case"])), *(column(row) for column in _COLUMNS.values())] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def _median(row: Row, side: str | None, part: str, unit: str) -> float | None:
    """Of one step in a round; None where the part was not measured."""
    rounds = [found for found in row["rounds"].get(side, ()) if part in found]
    return statistics.median(found[part][unit] / found[part]["batches"] for found in rounds) if rounds else None


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _time(side: Callable[[Row], str | None], part: str, unit: str = "seconds") -> Callable[[Row], str]:
    def column(row: Row) -> str:
        seconds = _median(row, side(row), part, unit)
        return _text(None if seconds is None else 1e3 * seconds, 0)

    return column


def _ratio(part: str, unit: str) -> Callable[[Row], str]:
    def column(row: Row) -> str:
        if not (found := ratios(row, part, unit)):
            return "-"
        return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"

    return column


def _images(row: Row) -> str:
    images = row["images"]
    seconds = _median(row, OURS, "step", "seconds"), _median(row, rival(row), "update", "seconds")
    return _both([images / value if value else None for value in seconds], 1)


def _host(row: Row) -> str:
    return _both([_gigabytes(row, side, "peak_bytes", "baseline_bytes") for side in (OURS, rival(row))], 2)


def _device(row: Row) -> str:
    return _both([_gigabytes(row, side, "device_bytes") for side in (OURS, rival(row))], 2)


def _gigabytes(row: Row, side: str | None, key: str, without: str = "") -> float | None:
    found = row["finished"].get(side, {})
    if found.get(key) is None:
        return None
    return (found[key] - found.get(without, 0)) / 1e9


def _compile(row: Row) -> str:
    return _both([row["prepared"].get(side, {}).get("compile_seconds") for side in (OURS, rival(row))], 1)


def _mfu(row: Row) -> str:
    """In percent: of our step and update, and of PyTorch's update."""
    flops = row["prepared"].get(OURS, {}).get("flops")
    if not flops:
        return "-"
    ceiling = max(found["ceiling"] for found in row["finished"].values())
    parts = (OURS, "step"), (OURS, "update"), (rival(row), "update")
    seconds = [_median(row, side, part, "seconds") for side, part in parts]
    return _both([100 * flops / value / ceiling if value else None for value in seconds], 1)


def _loss(row: Row) -> str:
    losses = [row["prepared"].get(side, {}).get("loss") for side in (OURS, rival(row))]
    if None in losses:
        return "-"
    return f"{abs(losses[0] - losses[1]) / abs(losses[1]):.0e}"


def _both(values: Sequence[float | None], digits: int) -> str:
    return " / ".join(_text(value, digits) for value in values)


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "ms update": _time(lambda row: OURS, "update"),
    "step": _time(lambda row: OURS, "step"),
    "PyTorch": _time(rival, "update"),
    "update ratio": _ratio("update", "seconds"),
    "step ratio": _ratio("step", "seconds"),
    "update core ratio": _ratio("update", "core_seconds"),
    "step core ratio": _ratio("step", "core_seconds"),
    "images/s": _images,
    "host GB": _host,
    "device GB": _device,
    "compile s": _compile,
    "MFU % step / update / PyTorch": _mfu,
    "d loss": _loss,
}
