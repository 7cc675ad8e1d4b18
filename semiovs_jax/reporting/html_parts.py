"""Parts of pages about a run: small diagrams of each class's IoU, examples, tables, pictures on white paper."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets import DatasetInfo
from semiovs_jax import html_pages
from semiovs_jax.html_pages import swatch, text
from semiovs_jax.reporting.examples import Example

STYLE = """
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
@media (max-width: 600px) {
  td:has(> .bar), th:empty { display: none; }
}
"""


def class_curves(history: Sequence[Mapping[str, Any]], dataset: DatasetInfo) -> str:
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
    return f"""<figure><figcaption><b>{text(name)}</b> <span class="share">{percent(values[-1])}</span></figcaption>
<svg viewBox="0 0 200 64" preserveAspectRatio="none" role="img"><polyline points="{points}"></polyline></svg>
<p><span>step {first}</span><span>{steps[-1]}</span></p></figure>
"""


def example_figure(example: Example, caption: str, dataset: DatasetInfo) -> str:
    """A photograph, its ground truth and its prediction, with the classes in them.

    Args:
      example: the image.
      caption: HTML, beside the name of the image.
      dataset: class names and palette.
    """
    planes = {"ground truth": example.label, "prediction": example.prediction}
    found = np.union1d(example.label, example.prediction)
    names = "".join(f"<li>{swatch(int(i), dataset)}{_class_name(int(i), dataset)}</li>" for i in found)
    tiles = html_pages.tiles(
        example.image, {title: html_pages.overlay(plane, dataset) for title, plane in planes.items()}
    )
    return f"""<figure>
<figcaption><b>{text(example.name)}</b> {caption}</figcaption>
{tiles}
<ul class="shares">{names}</ul>
</figure>
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells, the first column to the left, that scrolls in narrow windows."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def wide_picture(title: str, png: bytes) -> str:
    """A PNG file on white paper, which scrolls in narrow windows."""
    address = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<div class="wide"><div class="paper"><img alt="{text(title)}" src="{address}"></div></div>'


def _class_name(index: int, dataset: DatasetInfo) -> str:
    return text(dataset.classes[index]) if index < dataset.num_classes else "ignored"


def percent(share: float | None) -> str:
    """A share of 0..1; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f} %"
