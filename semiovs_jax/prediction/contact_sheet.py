"""A web page of predictions, least confident first; one file that includes all its images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from data_pipelines.images.decode import decode_confidence, decode_label
from data_pipelines.sources.records import File
from semiovs_jax import html_pages
from semiovs_jax.html_pages import swatch, text
from semiovs_jax.prediction.outputs import Outputs
from semiovs_jax.prediction.sources import Picture

FILE_NAME = "contact_sheet.html"

_IMAGES = 48


class Predicted(NamedTuple):
    """A picture with a finished prediction.

    Attributes:
      picture: the picture.
      confidence: mean confidence of its pixels, 0..1.
    """

    picture: Picture
    confidence: float


def write_contact_sheet(
    outputs: Outputs, predicted: Sequence[Predicted], dataset: DatasetInfo, facts: dict[str, Any]
) -> Path:
    """Writes DIR/contact_sheet.html; pictures that cannot be read any more are left out.

    Args:
      outputs: the folder.
      predicted: all finished predictions.
      dataset: class names and palette.
      facts: shown at the top, values by name.

    Returns:
      Path of the page.

    Raises:
      InputError: the page cannot be written.
    """
    order = sorted(range(len(predicted)), key=lambda i: predicted[i].confidence)[:_IMAGES]
    figures = {i: _figure(predicted[i], outputs, dataset) for i in sorted(order)}  # frames of a video in their order
    shown = [figures[i] for i in order if figures[i]]
    classes = "".join(f"<li>{swatch(i, dataset)}{text(name)}</li>" for i, name in enumerate(dataset.classes))
    which = "least confident first" if len(predicted) <= _IMAGES else f"the {_IMAGES} least confident"
    body = f"""{html_pages.facts(facts)}
<h2>Classes</h2>
<ul class="shares">{classes}</ul>
<h2>Confidence</h2>
{html_pages.heat_scale()}
<h2>{len(shown)} images, {which}: photograph, label, confidence</h2>
<div class="images">
{"".join(shown)}</div>"""
    path = outputs.folder / FILE_NAME
    replace_file(path, html_pages.page(f"Predictions for {len(predicted)} images", body))
    return path


def _figure(predicted: Predicted, outputs: Outputs, dataset: DatasetInfo) -> str:
    picture, paths = predicted.picture, outputs.paths(predicted.picture.id)
    try:
        image = picture.pixels()
        label, confidence = decode_label(File(paths.label), dataset), decode_confidence(File(paths.confidence))
    except InputError:
        return ""
    height, width = label.shape
    caption = f"<b>{text(picture.id)}</b> {width} x {height}, confidence {100 * predicted.confidence:.1f} %"
    return html_pages.labeled_figure(caption, image, label, confidence, dataset)
