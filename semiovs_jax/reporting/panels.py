"""Panels: images, labels and predictions side by side in one picture."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.augment import IMAGENET_MEAN, IMAGENET_STD

_LEAST_TILE = 144
_GAP = 6
_LINE = 18
_WHITE = (255, 255, 255)
_INK = (30, 30, 30)


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Inverts `augment.normalize`: from float [..., 3] to uint8 [..., 3]."""
    pixels = 255 * (np.asarray(image, np.float32) * IMAGENET_STD + IMAGENET_MEAN)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def colored(label: np.ndarray, dataset: DatasetInfo) -> np.ndarray:
    """Colors class indices with the dataset's palette, the ignore index white: from int [...] to uint8 [..., 3]."""
    palette = dataset.palette.copy()
    palette[dataset.ignore_index] = _WHITE
    return palette[np.asarray(label).astype(np.uint8)]


def draw_panel(columns: Mapping[str, np.ndarray], dataset: DatasetInfo) -> np.ndarray:
    """Draws one row for each image and one column for each entry, with a legend of the classes that occur.

    Args:
      columns: for each title, images (uint8 [N, H, W, 3], or float [N, H, W, 3] from `augment.normalize`) or labels
        (int [N, H, W], with the dataset's ignore index). The columns may differ in N.
      dataset: class names, palette, ignore index.

    Returns:
      uint8 [height, width, 3].
    """
    tiles = {title: [_tile(picture, dataset) for picture in pictures] for title, pictures in columns.items()}
    height, width = (max(tile.size[i] for column in tiles.values() for tile in column) for i in (1, 0))
    rows = max(len(column) for column in tiles.values())
    legend = _legend(columns, dataset)
    panel_width = len(tiles) * (width + _GAP) + _GAP
    lines = _wrap(legend, panel_width)
    panel = Image.new("RGB", (panel_width, _LINE + rows * (height + _GAP) + _LINE * len(lines) + _GAP), _WHITE)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(12)
    for i, (title, column) in enumerate(tiles.items()):
        left = _GAP + i * (width + _GAP)
        draw.text((left, 2), _fitting(title, font, width), _INK, font)
        for j, tile in enumerate(column):
            top = _LINE + j * (height + _GAP)
            panel.paste(tile, (left, top))
            draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=(170, 170, 170))
    for i, line in enumerate(lines):
        top = _LINE + rows * (height + _GAP) + i * _LINE
        for left, name, color in line:
            draw.rectangle((left, top + 2, left + 12, top + 14), fill=color, outline=_INK)
            draw.text((left + 17, top + 1), name, _INK, font)
    return np.asarray(panel)


def _tile(picture: np.ndarray, dataset: DatasetInfo) -> Image.Image:
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = colored(picture, dataset)
    elif picture.dtype != np.uint8:
        picture = to_pixels(picture)
    # Integer factors keep the pixels of a label square.
    factor = max(1, -(-_LEAST_TILE // max(picture.shape[:2])))
    return Image.fromarray(picture.repeat(factor, 0).repeat(factor, 1))


def _legend(columns: Mapping[str, np.ndarray], dataset: DatasetInfo) -> list[tuple[str, tuple[int, ...]]]:
    planes = [np.asarray(pictures) for pictures in columns.values() if np.ndim(pictures) == 3]
    found = sorted(set().union(*(np.unique(plane).tolist() for plane in planes)))
    entries = [(dataset.classes[i], tuple(dataset.palette[i].tolist())) for i in found if i < dataset.num_classes]
    return entries + ([("ignore", _WHITE)] if dataset.ignore_index in found else [])


def _wrap(legend: list[tuple[str, tuple[int, ...]]], width: int) -> list[list[tuple[int, str, tuple[int, ...]]]]:
    """Breaks the legend into lines of (left edge, name, color)."""
    font = ImageFont.load_default(12)
    lines: list[list[tuple[int, str, tuple[int, ...]]]] = []
    left = width
    for name, color in legend:
        needed = 17 + int(font.getlength(name)) + 14
        if left + needed > width:
            lines.append([])
            left = _GAP
        lines[-1].append((left, name, color))
        left += needed
    return lines


def _fitting(title: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(title) > width and len(title) > 1:
        title = title[:-2] + "…"
    return title
