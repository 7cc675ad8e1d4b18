"""The page of an evaluation: one HTML file that includes its pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax import html_pages
from semiovs_jax.evaluation.measures import ImageMeasures, ImagePrediction, Measures
from semiovs_jax.html_pages import swatch, text
from semiovs_jax.reporting.evaluation_report.confusion import row_shares
from semiovs_jax.reporting.examples import Example
from semiovs_jax.reporting.html_parts import STYLE, class_curves, example_figure, percent, wide_picture

_FACTS = ("checkpoint", "protocol", "images", "date", "config_sha256", "git_revision")
_SCORES = {
    "miou": "mIoU, all classes (absent as 0)",
    "miou_present": "mIoU, classes present",
    "pixel_accuracy": "pixel accuracy",
    "boundary_miou": "boundary mIoU, all classes",
    "ece": "expected calibration error",
}
_ROW_SCORES = ("iou", "boundary_iou")


def format_page(
    title: str,
    record: Mapping[str, Any],
    measures: Measures,
    dataset: DatasetInfo,
    records: ValidationRecords,
    history: Sequence[Mapping[str, Any]],
    confusion_png: bytes,
) -> str:
    """The page as HTML.

    Args:
      title: which checkpoint, in words.
      record: the content of eval.json.
      measures: of the validation split.
      dataset: its classes.
      records: its images; those that are shown are decoded again.
      history: evaluations during the run.
      confusion_png: the picture of the confusion matrix.

    Raises:
      InputError: an image cannot be read.
    """
    facts = {label: percent(record[key]) for key, label in _SCORES.items()}
    facts |= {key.replace("_", " "): record[key] for key in _FACTS if record.get(key)}
    body = f"""{html_pages.facts(facts)}
<h2>Classes</h2>
<div class="wide">{_class_table(record, measures.confusion, dataset)}</div>
<h2>Confusion matrix</h2>
{wide_picture("confusion matrix", confusion_png)}
<h2>IoU over the run, 0 to 100 %</h2>
{class_curves(history, dataset)}
<h2>Calibration</h2>
<div class="wide">{_calibration_table(measures)}</div>
{_examples("Lowest mIoU", measures.worst, measures.images, dataset, records)}
{_examples("Highest mIoU", measures.best, measures.images, dataset, records)}"""
    return html_pages.page(f"{dataset.name}: {title}", body, STYLE)


def _class_table(record: Mapping[str, Any], confusion: np.ndarray, dataset: DatasetInfo) -> str:
    shares, pixels = row_shares(confusion), confusion.sum(1)
    rows = []
    for index, name in enumerate(dataset.classes):
        iou, boundary = (record[key][name] for key in _ROW_SCORES)
        rows.append(
            f"<tr><td>{swatch(index, dataset)} {text(name)}</td><td>{percent(iou)}</td>"
            f'<td><div class="bar" style="width: {8 * (iou or 0):.2f}rem"></div></td>'
            f"<td>{percent(boundary)}</td><td>{percent(pixels[index] / max(pixels.sum(), 1))}</td>"
            f'<td class="left">{_confused_with(shares[index], index, dataset)}</td></tr>\n'
        )
    return (
        '<table>\n<tr><th>class</th><th>IoU</th><th></th><th>boundary IoU</th><th>of all pixels</th><th class="left">'
        f"most often taken for</th></tr>\n{''.join(rows)}</table>"
    )


def _confused_with(shares: np.ndarray, index: int, dataset: DatasetInfo) -> str:
    others = np.where(np.arange(len(shares)) == index, 0, np.nan_to_num(shares))
    most = int(others.argmax())
    return f"{text(dataset.classes[most])}, {percent(others[most])} of its pixels" if others[most] else ""


def _calibration_table(measures: Measures) -> str:
    total = max(sum(entry.pixels for entry in measures.calibration.bins), 1)
    rows = "".join(
        f"<tr><td>{percent(entry.low)} to {percent(entry.high)}</td><td>{percent(entry.pixels / total)}</td>"
        f"<td>{percent(entry.confidence)}</td><td>{percent(entry.accuracy)}</td></tr>\n"
        for entry in measures.calibration.bins
        if entry.pixels
    )
    return (
        "<table>\n<tr><th>confidence</th><th>of all pixels</th><th>mean confidence</th><th>accuracy</th></tr>\n"
        f"{rows}</table>"
    )


def _examples(
    title: str,
    predictions: Sequence[ImagePrediction],
    images: Sequence[ImageMeasures],
    dataset: DatasetInfo,
    records: ValidationRecords,
) -> str:
    ids, measured = records.ids(), {image.position: image for image in images}

    def figure(predicted: ImagePrediction) -> str:
        place = predicted.position
        image = measured[place]
        caption = (
            f"mIoU {percent(image.miou)}, accuracy {percent(image.pixel_accuracy)},\n"
            f"confidence {percent(image.confidence)}"
        )
        example = Example(ids[place], records[place]["image"], predicted.label, predicted.prediction)
        return example_figure(example, caption, dataset)

    figures = "".join(map(figure, predictions))
    return f"""<h2>{title}: photograph, ground truth, prediction</h2>
<div class="images">
{figures}</div>"""
