"""Writes the report of an evaluation to a folder."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.datasets import DatasetInfo
from data_pipelines.files import remove_abandoned_parts, replace_file
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax.evaluation import metrics
from semiovs_jax.evaluation.measures import Measures
from semiovs_jax.reporting import table
from semiovs_jax.reporting.evaluation_report.confusion import draw_confusion, row_shares
from semiovs_jax.reporting.evaluation_report.page import format_page

REPORT = "report.html"

_REMEDY = "choose an --out you may write to"


class Evaluated(NamedTuple):
    """An evaluated checkpoint.

    Attributes:
      title: which checkpoint, in words, such as "best, step 450".
      measures: of the validation split.
      dataset: its classes.
      records: its images.
      facts: entries of eval.json about the checkpoint and how it was evaluated; "protocol" among them.
      history: evaluations during the run, lines of the metrics log.
    """

    title: str
    measures: Measures
    dataset: DatasetInfo
    records: ValidationRecords
    facts: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()

    def record(self) -> dict[str, Any]:
        """The content of eval.json: the scores of result.json, further measures, and facts. Shares are in 0..1."""
        measures = self.measures
        boundary = [value if math.isfinite(value) else None for value in measures.boundary_iou.tolist()]
        present = [value for value in boundary if value is not None]
        return {
            "title": self.title,
            "images": len(measures.images),
            **table.scores_record(metrics.scores(measures.confusion), self.dataset.classes),
            "boundary_miou": sum(present) / len(boundary),
            "boundary_miou_present": sum(present) / max(len(present), 1),
            "boundary_iou": dict(zip(self.dataset.classes, boundary, strict=True)),
            "ece": measures.calibration.ece,
            "calibration": [entry._asdict() for entry in measures.calibration.bins],
            **self.facts,
        }


def write_evaluation(folder: Path, evaluated: Evaluated) -> Path:
    """Writes the report.

        eval.json      scores, measures and facts
        confusion.csv  a row for each true class: its pixels, and the shares that were predicted as each class
        confusion.png  the same shares as a picture
        images.csv     a row for each image: mIoU over the classes in its label or prediction, accuracy, confidence
        report.html    all of it, with the worst and the best images; one file

    Args:
      folder: created if missing.
      evaluated: what to report.

    Returns:
      Path of the page.

    Raises:
      InputError: a file cannot be written, or an image cannot be read.
    """
    measures, classes = evaluated.measures, evaluated.dataset.classes
    record = evaluated.record()
    remove_abandoned_parts(folder)
    replace_file(folder / "eval.json", json.dumps(record, indent=2, allow_nan=False) + "\n", remedy=_REMEDY)
    shares = row_shares(measures.confusion).tolist()
    pixels = measures.confusion.sum(1).tolist()
    rows = (
        [name, count, *(share if count else "" for share in row)]
        for name, count, row in zip(classes, pixels, shares, strict=True)
    )
    _write_csv(folder / "confusion.csv", ["true class", "pixels", *classes], rows)
    ids = evaluated.records.ids()
    _write_csv(
        folder / "images.csv",
        ["image", "miou", "pixel_accuracy", "confidence"],
        ((ids[image.position], *image[1:]) for image in measures.images),
    )
    picture = draw_confusion(measures.confusion, classes)
    replace_file(folder / "confusion.png", picture, remedy=_REMEDY)
    page = format_page(
        evaluated.title, record, measures, evaluated.dataset, evaluated.records, evaluated.history, picture
    )
    replace_file(folder / REPORT, page, remedy=_REMEDY)
    return folder / REPORT


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """None becomes an empty cell; bytes of names that are not UTF-8 are escaped."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    replace_file(path, content.getvalue().encode(errors="backslashreplace"), remedy=_REMEDY)
