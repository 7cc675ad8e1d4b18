"""A web page with a sample of the cached OVS labels.

    python -m semiovs_jax.ovs.labeling.contact_sheet --config=configs/voc92.py [--images=24]

Labeling writes the page at its end: LABELS_DIR/contact_sheet.html, one file that includes all its images. The page
shows the model, the share of each class in the whole set, and a sample of images, evenly spaced over the set: the
photograph, its label as an overlay, the confidence, and the share of each class.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_confidence, decode_image, decode_label
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.labels.manifest import MANIFEST, RUN_LABEL, labels_folder, read_manifest, write_whole
from data_pipelines.loading.streams import open_config_split, with_labels
from data_pipelines.sources.records import Record
from semiovs_jax import html_pages
from semiovs_jax.html_pages import percent, swatch, text
from semiovs_jax.runtime.program import config_arguments, other_command

FILE_NAME = "contact_sheet.html"

_FACTS = ("dataset", "ovs", "weights", "vocabulary", "fingerprint")

_STYLE = """
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: .15rem 2rem; }
.classes li { display: grid; grid-template-columns: 1rem 8rem 1fr 4rem; gap: .5rem; align-items: center; }
"""


def write_contact_sheet(labels_dir: Path, records: Iterable[Record], dataset: DatasetInfo, *, images: int = 24) -> Path:
    """Writes `labels_dir`/contact_sheet.html. The same labels give the same bytes.

    Args:
      labels_dir: folder of cached labels, with a manifest.
      records: the OOD images with these labels, see `LabeledSource`.
      dataset: class names and palette.
      images: number of labeled images to show.

    Returns:
      Path of the page.

    Raises:
      InputError: the manifest is missing, an image or its label cannot be read, or the page cannot be written.
    """
    manifest = read_manifest(labels_dir)
    if manifest is None:
        raise InputError(f"{labels_dir / MANIFEST}: no such file; make the labels first: {RUN_LABEL}")
    cache = open_label_cache(labels_dir)
    labeled = [record for record in records if cache.is_labeled(record.id)]
    counts = manifest.get("counts", {})
    facts = {key: manifest[key] for key in _FACTS if manifest.get(key)}
    facts |= {f"{key} images": value for key, value in counts.items() if key != "images"}
    title = f"OVS labels of {counts.get('images', 'unfinished')} images"
    return write_sheet(labels_dir, title, facts, manifest.get("pixels", {}), labeled, dataset, images=images)


def write_sheet(
    labels_dir: Path,
    title: str,
    facts: dict[str, Any],
    pixels: Mapping[str, int],
    labeled: Sequence[Record],
    dataset: DatasetInfo,
    *,
    images: int = 24,
) -> Path:
    """Writes a page of labels of any origin.

    Args:
      labels_dir: folder of the page.
      title: its title.
      facts: what is known about the labels.
      pixels: pixels per class of the whole set, by name; empty if unknown.
      labeled: images with labels; without a confidence, they are certain.
      dataset: class names and palette.
      images: number of images to show.

    Returns:
      Path of the page.

    Raises:
      InputError: an image or its label cannot be read, or the page cannot be written.
    """
    if images < 1:
        raise InputError(f"--images={images}: show at least 1")
    sample = np.linspace(0, max(0, len(labeled) - 1), min(images, len(labeled))).round().astype(int)
    figures = [_figure(labeled[i], dataset) for i in sample]
    body = f"""{html_pages.facts(facts)}
<h2>Share of each class in all pixels</h2>
{_histogram(pixels, dataset)}
<h2>Confidence</h2>
{html_pages.heat_scale()}
<h2>{len(figures)} images, evenly spread: photograph, label, confidence</h2>
<div class="images">
{"".join(figures)}</div>"""
    path = labels_dir / FILE_NAME
    write_whole(path, html_pages.page(title, body, _STYLE))
    return path


def _histogram(pixels: Mapping[str, int], dataset: DatasetInfo) -> str:
    """The classes that occur, with their colors and shares."""
    if not any(pixels.values()):
        return "<p>Not known until the labels are finished.</p>"
    total, most = sum(pixels.values()), max(pixels.values())
    index = {name: i for i, name in enumerate(dataset.classes)}
    rows = "".join(
        f"<li>{swatch(index.get(name), dataset)}<span>{text(name)}</span>"
        f'<span class="bar" style="width: {100 * count / most:.2f}%"></span>'
        f'<span class="share">{percent(count / total)}</span></li>\n'
        for name, count in pixels.items()
        if count
    )
    return f'<ul class="classes">\n{rows}</ul>'


def _figure(record: Record, dataset: DatasetInfo) -> str:
    if record.label is None:
        raise InputError(f"{record.id}: the record has no label; pass the records of a LabeledSource")
    image, label = decode_image(record.image), decode_label(record.label, dataset)
    height, width = label.shape
    caption = f"<b>{text(record.id)}</b> {width} x {height}"
    confidence = decode_confidence(record.confidence) if record.confidence else np.full_like(label, 255)
    return html_pages.labeled_figure(caption, image, label, confidence, dataset)


def main(flags: Any) -> None:
    """Writes the page for the labels of `flags.config`."""
    config = flags.config
    folder = labels_folder(config.ovs.labels_dir)
    source = with_labels(open_config_split(config.data, "ood"), open_label_cache(folder), confidence=True)
    dataset = dataset_info(config.data.dataset)
    records = (source[i] for i in range(len(source)))
    path = write_contact_sheet(folder, records, dataset, images=flags.images)
    following = other_command("train", *config_arguments(), "--workdir=RUN")
    logging.getLogger(__name__).info("wrote %s; open it in a browser\nnext: %s", path, following)


if __name__ == "__main__":
    from absl import flags as absl_flags

    from semiovs_jax.runtime.command import run_command

    absl_flags.DEFINE_integer("images", 24, "Number of images to show.")
    run_command(main, needs_workdir=False, joins_processes=False)
