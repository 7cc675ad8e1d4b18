"""Parts of HTML pages that are one file: frame, pictures as data URIs, colors of classes, labels over photographs.

Pages follow the reader's light or dark theme, and fit narrow and wide windows.
"""

import base64
import html
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo

_LONGEST = 320  # pixels of a picture's longer side
_OVERLAY_ALPHA = 165
_BACKGROUND_ALPHA = 60  # objects that a label misses stay visible
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
.bar { height: .6rem; min-width: 1px; background: var(--bar); border-radius: 2px; }
.share { text-align: right; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: .9rem; height: .9rem; border: 1px solid var(--faint); border-radius: 3px; }
.ignored { background: repeating-linear-gradient(45deg, var(--line) 0 3px, var(--paper) 3px 6px); }
.heat { display: flex; align-items: center; gap: .6rem; margin: 0 0 .8rem; }
.heat i { width: 14rem; height: .9rem; border: 1px solid var(--faint); border-radius: 3px; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 600px), 1fr)); gap: 1.2rem;
  align-items: start; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; }
figcaption { margin-bottom: .5rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
.tiles > * { width: 100%; position: relative; }
.tiles > ::before { content: ""; position: absolute; inset: 0; background: var(--photo) 0 0 / 100% 100%; }
.tiles > :has(img)::before { filter: grayscale(1) contrast(.6) brightness(.75); }
.tiles img { display: block; position: relative; width: 100%; height: 100%; }
.shares { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: .5rem; }
.shares li { display: flex; align-items: center; gap: .35rem; }
@media (max-width: 600px) {
  body { margin: 1rem auto; padding: 0 .8rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
}
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
      title: plain text, the page's title and first heading.
      body: HTML below the heading.
      style: CSS beside the common one.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{text(title)}</h1>
{body}
</body>
</html>
"""


def text(value: Any) -> str:
    """Plain text as HTML."""
    return html.escape(str(value).encode(errors="backslashreplace").decode())  # file names need not be UTF-8


def percent(share: float) -> str:
    """A share of 0..1 with one decimal."""
    return f"{100 * share:.1f} %" if share >= 5e-4 else "< 0.1 %"


def swatch(index: int | None, dataset: DatasetInfo) -> str:
    """A square in the color of a class; hatched for pixels without a class."""
    if index is None or index >= dataset.num_classes:
        return '<span class="swatch ignored"></span>'
    red, green, blue = dataset.palette[index]
    return f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'


def facts(values: dict[str, Any]) -> str:
    """A list of names and values."""
    return f"<dl>{''.join(f'<dt>{text(key)}</dt><dd>{text(value)}</dd>' for key, value in values.items())}</dl>"


def data_uri(image: Image.Image, encoding: str, **options: Any) -> str:
    """The address of a picture that includes the picture.

    Args:
      image: the picture.
      encoding: "PNG" or "JPEG".
      **options: of Pillow's `save`.
    """
    buffer = io.BytesIO()
    image.save(buffer, format=encoding, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def tile_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of an image of this size in a page."""
    scale = min(1.0, _LONGEST / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def photograph(image: np.ndarray) -> str:
    """The address of a photograph (uint8 [H, W, 3])."""
    small = Image.fromarray(image).resize(tile_size(*image.shape[:2]), Image.Resampling.BOX)
    return data_uri(small, "JPEG", quality=85)


def overlay(label: np.ndarray, dataset: DatasetInfo) -> str:
    """The address of a label (uint8 [H, W]) to lay over its photograph; pixels without a class are transparent."""
    plane = Image.fromarray(label).resize(tile_size(*label.shape), Image.Resampling.NEAREST)
    plane.putpalette(dataset.palette.tobytes())  # gray levels become indices
    alpha = bytearray([_OVERLAY_ALPHA] * 256)
    alpha[dataset.ignore_index] = 0
    if dataset.background is not None:
        alpha[dataset.background] = _BACKGROUND_ALPHA
    return data_uri(plane, "PNG", transparency=bytes(alpha))


def heat(confidence: np.ndarray) -> str:
    """The address of a confidence map (uint8 [H, W], 255 is certain) in the colors of `heat_scale`."""
    plane = Image.fromarray(confidence).resize(tile_size(*confidence.shape), Image.Resampling.BOX)
    plane.putpalette(_heat_palette().tobytes())
    return data_uri(plane, "PNG")


def heat_scale() -> str:
    """The colors of confidences."""
    colors = ", ".join(f"rgb({r} {g} {b})" for r, g, b in _heat_palette()[::15])
    return f'<p class="heat">0 <i style="background: linear-gradient(90deg, {colors})"></i> 1</p>'


def _heat_palette() -> np.ndarray:
    """Colors of confidence 0 to 255, uint8 [256, 3]."""
    return matplotlib.colormaps[_HEAT](np.arange(256), bytes=True)[:, :3]


def tiles(image: np.ndarray, others: dict[str, str]) -> str:
    """Pictures side by side: a photograph (uint8 [H, W, 3]) and others of its shape, their addresses by name."""
    width, height = tile_size(*image.shape[:2])
    shown = "".join(f'<div><img alt="{text(name)}" src="{address}"></div>\n' for name, address in others.items())
    return f"""<div class="tiles" style="--photo: url({photograph(image)})">
<div role="img" aria-label="photograph" style="aspect-ratio: {width} / {height}"></div>
{shown}</div>"""


def labeled_figure(
    caption: str, image: np.ndarray, label: np.ndarray, confidence: np.ndarray, dataset: DatasetInfo
) -> str:
    """A photograph, its label, its confidence, and the share of each class.

    Args:
      caption: HTML.
      image: uint8 [H, W, 3].
      label: uint8 [H, W].
      confidence: uint8 [H, W], 255 is certain.
      dataset: class names and palette.
    """
    counts = np.bincount(label.ravel(), minlength=256)
    shares = "".join(
        f"<li>{swatch(int(i), dataset)}{text(dataset.classes[i] if i < dataset.num_classes else 'ignored')} "
        f'<span class="share">{percent(counts[i] / label.size)}</span></li>'
        for i in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    )
    return f"""<figure>
<figcaption>{caption}</figcaption>
{tiles(image, {"label": overlay(label, dataset), "confidence": heat(confidence)})}
<ul class="shares">{shares}</ul>
</figure>
"""
