"""The page of an evaluation: one HTML file that includes its pictures."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax import html_pages
from semiovs_jax.evaluation.measures import ImageMeasures, ImagePrediction, Measures
from semiovs_jax.html_pages import swatch, text
from semiovs_jax.reporting.evaluation_report.confusion import row_shares

_FACTS = ("checkpoint", "protocol", "images", "date", "config_sha256", "git_revision")
_SCORES = {
    "miou": "mIoU, all classes (absent as 0)",
    "miou_present": "mIoU, classes present",
    "pixel_accuracy": "pixel accuracy",
    "boundary_miou": "boundary mIoU, all classes",
    "ece": "expected calibration error",
}
_ROW_SCORES = ("iou", "boundary_iou")

_STYLE = """
.wide { overflow-x: auto; }
.paper { background: #fff; border-radius: 8px; padding: .5rem; display: inline-block; }
.paper img { display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .left { text-align: left; }
td .bar { width: 8rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 1rem; }
.curves figure { padding: .5rem .6rem; }
.curves figcaption { display: flex; justify-content: space-between; gap: .5rem; margin: 0; }
.curves svg { display: block; width: 100%; height: 64px; border: solid var(--line); border-width: 0 0 1px 1px; }
.curves polyline { fill: none; stroke: var(--bar); stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke-linecap: round; stroke-linejoin: round; }
.curves p { display: flex; justify-content: space-between; margin: 0; color: var(--faint); font-size: .8rem; }
"""


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
    facts = {label: _percent(record[key]) for key, label in _SCORES.items()}
    facts |= {key.replace("_", " "): record[key] for key in _FACTS if record.get(key)}
    picture = base64.b64encode(confusion_png).decode()
    body = f"""{html_pages.facts(facts)}
<h2>Classes</h2>
<div class="wide">{_class_table(record, measures.confusion, dataset)}</div>
<h2>Confusion matrix</h2>
<div class="wide"><div class="paper"><img alt="confusion matrix" src="data:image/png;base64,{picture}"></div></div>
<h2>IoU over the run, 0 to 100 %</h2>
{_curves(history, dataset)}
<h2>Calibration</h2>
<div class="wide">{_calibration_table(measures)}</div>
{_examples("Lowest mIoU", measures.worst, measures.images, dataset, records)}
{_examples("Highest mIoU", measures.best, measures.images, dataset, records)}"""
    return html_pages.page(f"{dataset.name}: {title}", body, _STYLE)


def _class_table(record: Mapping[str, Any], confusion: np.ndarray, dataset: DatasetInfo) -> str:
    shares, pixels = row_shares(confusion), confusion.sum(1)
    rows = []
    for index, name in enumerate(dataset.classes):
        iou, boundary = (record[key][name] for key in _ROW_SCORES)
        rows.append(
            f"<tr><td>{swatch(index, dataset)} {text(name)}</td><td>{_percent(iou)}</td>"
            f'<td><div class="bar" style="width: {8 * (iou or 0):.2f}rem"></div></td>'
            f"<td>{_percent(boundary)}</td><td>{_percent(pixels[index] / max(pixels.sum(), 1))}</td>"
            f'<td class="left">{_confused_with(shares[index], index, dataset)}</td></tr>\n'
        )
    return (
        '<table>\n<tr><th>class</th><th>IoU</th><th></th><th>boundary IoU</th><th>of all pixels</th><th class="left">'
        f"most often taken for</th></tr>\n{''.join(rows)}</table>"
    )


def _confused_with(shares: np.ndarray, index: int, dataset: DatasetInfo) -> str:
    others = np.where(np.arange(len(shares)) == index, 0, np.nan_to_num(shares))
    most = int(others.argmax())
    return f"{text(dataset.classes[most])}, {_percent(others[most])} of its pixels" if others[most] else ""


def _calibration_table(measures: Measures) -> str:
    total = max(sum(entry.pixels for entry in measures.calibration.bins), 1)
    rows = "".join(
        f"<tr><td>{_percent(entry.low)} to {_percent(entry.high)}</td><td>{_percent(entry.pixels / total)}</td>"
        f"<td>{_percent(entry.confidence)}</td><td>{_percent(entry.accuracy)}</td></tr>\n"
        for entry in measures.calibration.bins
        if entry.pixels
    )
    return (
        "<table>\n<tr><th>confidence</th><th>of all pixels</th><th>mean confidence</th><th>accuracy</th></tr>\n"
        f"{rows}</table>"
    )


def _curves(history: Sequence[Mapping[str, Any]], dataset: DatasetInfo) -> str:
    """One small diagram for the mean and for each class, all with the same axes."""
    if len(history) < 2:
        return "<p>The metrics of the run hold fewer than two evaluations.</p>"
    steps = [entry["step"] for entry in history]
    curves = {"mIoU": [entry["miou"] for entry in history]}
    curves |= {name: [entry["iou"].get(name) for entry in history] for name in dataset.classes}
    return f'<div class="curves">\n{"".join(_curve(name, steps, values) for name, values in curves.items())}</div>'


def _curve(name: str, steps: Sequence[int], values: Sequence[float | None]) -> str:
    first, length = steps[0], max(steps[-1] - steps[0], 1)
    points = " ".join(
        f"{200 * (step - first) / length:.1f},{64 * (1 - value):.1f}"
        for step, value in zip(steps, values, strict=True)
        if value is not None
    )
    return f"""<figure><figcaption><b>{text(name)}</b> <span class="share">{_percent(values[-1])}</span></figcaption>
<svg viewBox="0 0 200 64" preserveAspectRatio="none" role="img"><polyline points="{points}"></polyline></svg>
<p><span>step {first}</span><span>{steps[-1]}</span></p></figure>
"""


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
        return _figure(ids[place], predicted, measured[place], dataset, records[place]["image"])

    figures = "".join(map(figure, predictions))
    return f"""<h2>{title}: photograph, ground truth, prediction</h2>
<div class="images">
{figures}</div>"""


def _figure(
    name: str, predicted: ImagePrediction, measured: ImageMeasures, dataset: DatasetInfo, image: np.ndarray
) -> str:
    planes = {"ground truth": predicted.label, "prediction": predicted.prediction}
    found = np.union1d(predicted.label, predicted.prediction)
    names = "".join(f"<li>{swatch(int(i), dataset)}{_class_name(int(i), dataset)}</li>" for i in found)
    tiles = html_pages.tiles(image, {title: html_pages.overlay(plane, dataset) for title, plane in planes.items()})
    return f"""<figure>
<figcaption><b>{text(name)}</b> mIoU {_percent(measured.miou)}, accuracy {_percent(measured.pixel_accuracy)},
confidence {_percent(measured.confidence)}</figcaption>
{tiles}
<ul class="shares">{names}</ul>
</figure>
"""


def _class_name(index: int, dataset: DatasetInfo) -> str:
    return text(dataset.classes[index]) if index < dataset.num_classes else "ignored"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
