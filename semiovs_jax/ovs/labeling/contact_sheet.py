"""A web page with a sample of the cached OVS labels.

    python -m semiovs_jax.ovs.labeling.contact_sheet --config=configs/voc92.py [--images=24]

Labeling writes the page at its end: LABELS_DIR/contact_sheet.html, one file that includes all its images. The page
shows the model, the share of each class in the whole set, and a sample of images, evenly spaced over the set: the
photograph, its label as an overlay, the confidence, and the share of each class.
"""

import base64
import html
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_confidence, decode_image, decode_label
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.labels.manifest import MANIFEST, RUN_LABEL, labels_folder, read_manifest, write_whole
from data_pipelines.loading.streams import open_config_split, with_labels
from data_pipelines.sources.records import Record

FILE_NAME = "contact_sheet.html"

_LONGEST = 320  # pixels of a picture's longer side
_OVERLAY_ALPHA = 165
_FACTS = ("dataset", "ovs", "weights", "vocabulary", "fingerprint")
_HEAT = "viridis"

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --faint: #6a7078; --line: #d9dce0; --bar: #4a7dbd; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17191c; --ink: #e6e8ea; --faint: #9aa1a9; --line: #363b41; --bar: #6f9fd8; }
}
* { box-sizing: border-box; }
body { margin: 2rem auto; padding: 0 1.5rem; max-width: 1500px; background: var(--paper); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt, .share { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
ul { list-style: none; margin: 0; padding: 0; }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: .15rem 2rem; }
.classes li { display: grid; grid-template-columns: 1rem 8rem 1fr 4rem; gap: .5rem; align-items: center; }
.bar { height: .6rem; min-width: 1px; background: var(--bar); border-radius: 2px; }
.share { text-align: right; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: .9rem; height: .9rem; border: 1px solid var(--faint); border-radius: 3px; }
.ignored { background: repeating-linear-gradient(45deg, var(--line) 0 3px, var(--paper) 3px 6px); }
.heat { display: flex; align-items: center; gap: .6rem; margin: 0; }
.heat i { width: 14rem; height: .9rem; border: 1px solid var(--faint); border-radius: 3px; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 600px), 1fr)); gap: 1.2rem;
  align-items: start; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; }
figcaption { margin-bottom: .5rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
.tiles > * { width: 100%; background: var(--photo) 0 0 / 100% 100%; }
.tiles img { display: block; width: 100%; height: 100%; }
.shares { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: .5rem; }
.shares li { display: flex; align-items: center; gap: .35rem; }
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
    if images < 1:
        raise InputError(f"--images={images}: show at least 1")
    manifest = read_manifest(labels_dir)
    if manifest is None:
        raise InputError(f"{labels_dir / MANIFEST}: no such file; make the labels first: {RUN_LABEL}")
    cache = open_label_cache(labels_dir)
    labeled = [record for record in records if cache.is_labeled(record.id)]
    sample = np.linspace(0, max(0, len(labeled) - 1), min(images, len(labeled))).round().astype(int)
    page = _page(manifest, [_figure(labeled[i], dataset) for i in sample], dataset)
    path = labels_dir / FILE_NAME
    write_whole(path, page)
    return path


def _page(manifest: Mapping[str, Any], figures: list[str], dataset: DatasetInfo) -> str:
    title = f"OVS labels of {manifest.get('counts', {}).get('images', 'unfinished')} images"
    facts = {key: manifest[key] for key in _FACTS if manifest.get(key)}
    facts |= {f"{key} images": value for key, value in manifest.get("counts", {}).items() if key != "images"}
    rows = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in facts.items())
    colors = ", ".join(f"rgb({r} {g} {b})" for r, g, b in _heat_palette()[::15])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<dl>{rows}</dl>
<h2>Share of each class in all pixels</h2>
{_histogram(manifest.get("pixels", {}), dataset)}
<h2>Confidence</h2>
<p class="heat">0 <i style="background: linear-gradient(90deg, {colors})"></i> 1</p>
<h2>{len(figures)} images, evenly spread: photograph, label, confidence</h2>
<div class="images">
{"".join(figures)}</div>
</body>
</html>
"""


def _histogram(pixels: Mapping[str, int], dataset: DatasetInfo) -> str:
    """The classes that occur, with their colors and shares."""
    if not any(pixels.values()):
        return "<p>Not known until the labels are finished.</p>"
    total, most = sum(pixels.values()), max(pixels.values())
    index = {name: i for i, name in enumerate(dataset.classes)}
    rows = "".join(
        f"<li>{_swatch(index.get(name), dataset)}<span>{_text(name)}</span>"
        f'<span class="bar" style="width: {100 * count / most:.2f}%"></span>'
        f'<span class="share">{_percent(count / total)}</span></li>\n'
        for name, count in pixels.items()
        if count
    )
    return f'<ul class="classes">\n{rows}</ul>'


def _figure(record: Record, dataset: DatasetInfo) -> str:
    if record.label is None or record.confidence is None:
        raise InputError(f"{record.id}: the record has no label or no confidence; pass the records of a LabeledSource")
    image, label = decode_image(record.image), decode_label(record.label, dataset)
    height, width = label.shape
    scale = min(1.0, _LONGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo = _data_uri(Image.fromarray(image).resize(size, Image.Resampling.BOX), "JPEG", quality=85)
    plane = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    plane.putpalette(dataset.palette.tobytes())  # gray levels become indices
    alpha = bytes(0 if i == dataset.ignore_index else _OVERLAY_ALPHA for i in range(256))
    heat = Image.fromarray(decode_confidence(record.confidence)).resize(size, Image.Resampling.BOX)
    heat.putpalette(_heat_palette().tobytes())
    counts = np.bincount(label.ravel(), minlength=256)
    shares = "".join(
        f"<li>{_swatch(int(i), dataset)}{_text(dataset.classes[i] if i < dataset.num_classes else 'ignored')} "
        f'<span class="share">{_percent(counts[i] / label.size)}</span></li>'
        for i in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    )
    return f"""<figure style="--photo: url({photo})">
<figcaption><b>{_text(record.id)}</b> {width} x {height}</figcaption>
<div class="tiles">
<div role="img" aria-label="photograph" style="aspect-ratio: {size[0]} / {size[1]}"></div>
<div><img alt="label" src="{_data_uri(plane, "PNG", transparency=alpha)}"></div>
<div><img alt="confidence" src="{_data_uri(heat, "PNG")}"></div>
</div>
<ul class="shares">{shares}</ul>
</figure>
"""


def _swatch(index: int | None, dataset: DatasetInfo) -> str:
    if index is None or index >= dataset.num_classes:
        return '<span class="swatch ignored"></span>'
    red, green, blue = dataset.palette[index]
    return f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'


def _heat_palette() -> np.ndarray:
    """Colors of confidence 0 to 255, uint8 [256, 3]."""
    return matplotlib.colormaps[_HEAT](np.arange(256), bytes=True)[:, :3]


def _data_uri(image: Image.Image, encoding: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=encoding, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 5e-4 else "< 0.1 %"


def _text(value: Any) -> str:
    return html.escape(str(value).encode(errors="backslashreplace").decode())  # file names need not be UTF-8


def main(flags: Any) -> None:
    """Writes the page for the labels of `flags.config`."""
    config = flags.config
    folder = labels_folder(config.ovs.labels_dir)
    source = with_labels(open_config_split(config.data, "ood"), open_label_cache(folder), confidence=True)
    dataset = dataset_info(config.data.dataset)
    records = (source[i] for i in range(len(source)))
    path = write_contact_sheet(folder, records, dataset, images=flags.images)
    logging.getLogger(__name__).info("wrote %s", path)


if __name__ == "__main__":
    from absl import flags as absl_flags

    from semiovs_jax.runtime.command import run_command

    absl_flags.DEFINE_integer("images", 24, "Number of images to show.")
    run_command(main, needs_workdir=False)
