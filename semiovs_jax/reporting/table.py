"""The final table of per-class IoU, and result.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.files import replace_file
from semiovs_jax.checkpoints.best import find_best
from semiovs_jax.evaluation.metrics import Scores

Record = Mapping[str, Any]


def scores_record(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """An evaluation as plain data: fractions in 0..1, and None as the IoU of an absent class."""
    iou = zip(classes, scores.iou.tolist(), scores.present.tolist(), strict=True)
    return {
        "miou": scores.mean_iou,
        "miou_present": scores.mean_iou_present,
        "pixel_accuracy": scores.pixel_accuracy,
        "iou": {name: value if present else None for name, value, present in iou},
    }


def best_of(evaluations: Sequence[Record]) -> Record:
    """The evaluation with the highest mIoU over all classes; see `checkpoints.best`."""
    by_step = {record["step"]: record for record in evaluations}
    found = find_best({step: record["miou"] for step, record in by_step.items()})
    assert found is not None
    return by_step[found.step]


def format_table(columns: Mapping[str, Record], protocol: str) -> str:
    """Formats the per-class IoU of evaluations, in percent, with both means.

    Args:
      columns: records of `scores_record` by the titles of their columns; all of the same classes.
      protocol: the evaluation protocol in one sentence.
    """
    records = columns.values()
    classes = next(iter(records))["iou"]
    rows = [(name, *(record["iou"][name] for record in records)) for name in classes]
    means = [
        ("mIoU, all classes (absent as 0)", *(record["miou"] for record in records)),
        ("mIoU, classes present", *(record["miou_present"] for record in records)),
        ("pixel accuracy", *(record["pixel_accuracy"] for record in records)),
    ]
    name_width = max(len(name) for name, *_ in rows + means)
    width = max(map(len, columns))
    rule = "-" * (name_width + len(columns) * (width + 2))

    def line(name: str, *cells: str) -> str:
        return f"{name:<{name_width}}" + "".join(f"  {cell:>{width}}" for cell in cells)

    body = [line(name, *map(_percent, values)) for name, *values in rows]
    foot = [line(name, *map(_percent, values)) for name, *values in means]
    return "\n".join([line("IoU, %", *columns), rule, *body, rule, *foot, rule, f"protocol: {protocol}"])


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes result.json atomically."""
    replace_file(path, json.dumps(result, indent=2) + "\n")


def _percent(share: float | None) -> str:
    return "absent" if share is None else f"{100 * share:.2f}"
