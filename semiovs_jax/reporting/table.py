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


def format_table(best: Record, last: Record, protocol: str) -> str:
    """Formats the per-class IoU of the best and the last evaluation, in percent, with both means.

    Args:
      best: the best evaluation: a record of `scores_record` with its "step".
      last: the last evaluation, in the same form.
      protocol: the evaluation protocol in one sentence.
    """
    rows = [(name, value, last["iou"][name]) for name, value in best["iou"].items()]
    means = [
        ("mIoU, all classes (absent as 0)", best["miou"], last["miou"]),
        ("mIoU, classes present", best["miou_present"], last["miou_present"]),
        ("pixel accuracy", best["pixel_accuracy"], last["pixel_accuracy"]),
    ]
    heads = (f"best, step {best['step']}", f"last, step {last['step']}")
    name_width = max(len(name) for name, *_ in rows + means)
    width = max(map(len, heads))
    rule = "-" * (name_width + 2 * (width + 2))

    def line(name: str, *cells: str) -> str:
        return f"{name:<{name_width}}" + "".join(f"  {cell:>{width}}" for cell in cells)

    body = [line(name, *map(_percent, values)) for name, *values in rows]
    foot = [line(name, *map(_percent, values)) for name, *values in means]
    return "\n".join([line("IoU, %", *heads), rule, *body, rule, *foot, rule, f"protocol: {protocol}"])


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Writes result.json atomically."""
    replace_file(path, json.dumps(result, indent=2) + "\n")


def _percent(share: float | None) -> str:
    return "absent" if share is None else f"{100 * share:.2f}"
