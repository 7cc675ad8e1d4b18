"""Panels: images, labels and predictions side by side in one picture."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.augment import IMAGENET_MEAN, IMAGENET_STD
from semiovs_jax.reporting.overlays import overlay

_LEAST_TILE = 144
_GAP = 6
_LINE = 18
_WHITE = (255, 255, 255)
_INK = (30, 30, 30)
_EDGE = (170, 170, 170)
_SWATCH = 12

Column = np.ndarray | Sequence[np.ndarray]
_Entry = tuple[str, int]  # a class of the legend and its index


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Inverts `augment.normalize`: from float [..., 3] to uint8 [..., 3]."""
    pixels = 255 * (np.asarray(image, np.float32) * IMAGENET_STD + IMAGENET_MEAN)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def draw_panel(columns: Mapping[str, Column], dataset: DatasetInfo, width: int | None = None) -> np.ndarray:
    """Draws one row for each image and one column for each entry, with a legend of the classes that occur.

    Labels lie over the images of the last column of images before them, see `overlays`.

    Args:
      columns: for each title, images (uint8 [N, H, W, 3], or float [N, H, W, 3] from `augment.normalize`) or labels
        (int [N, H, W], with the dataset's ignore index). The columns may differ in N, and the pictures of a column in
        size. A title may have several lines.
      dataset: class names, palette, ignore index.
      width: of all pictures, in pixels, which are resized; None draws them as they are, small ones enlarged by whole
        factors.

    Returns:
      uint8 [height, width, 3].
    """
    tiles = _tiles(columns, dataset, width)
    rows = max(len(column) for column in tiles.values())
    width = max(tile.width for column in tiles.values() for tile in column)
    heights = [max(column[row].height for column in tiles.values() if row < len(column)) for row in range(rows)]
    head = _LINE * max(title.count("\n") + 1 for title in tiles)
    tops = [head + sum(heights[:row]) + row * _GAP for row in range(rows + 1)]
    panel_width = len(tiles) * (width + _GAP) + _GAP
    lines = _wrap(_legend(columns, dataset), panel_width)
    panel = Image.new("RGB", (panel_width, tops[-1] + _LINE * len(lines) + _GAP), _WHITE)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(12)
    for i, (title, column) in enumerate(tiles.items()):
        left = _GAP + i * (width + _GAP)
        for j, line in enumerate(title.split("\n")):
            draw.text((left, 2 + j * _LINE), _fitting(line, font, width), _INK, font)
        for top, tile in zip(tops, column, strict=False):
            panel.paste(tile, (left, top))
            draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=_EDGE)
    for top, line_entries in enumerate(lines):
        y = tops[-1] + top * _LINE
        for left, (name, index) in line_entries:
            square = overlay(np.full((_SWATCH, _SWATCH), index), dataset)
            panel.paste(Image.fromarray(square), (left + 1, y + 3))
            draw.rectangle((left, y + 2, left + _SWATCH + 1, y + 3 + _SWATCH), outline=_INK)
            draw.text((left + 18, y + 1), name, _INK, font)
    return np.asarray(panel)


def _tiles(columns: Mapping[str, Column], dataset: DatasetInfo, width: int | None) -> dict[str, list[Image.Image]]:
    tiles: dict[str, list[Image.Image]] = {}
    images: list[np.ndarray] = []
    for title, column in columns.items():
        pictures = [np.asarray(picture) for picture in column]
        if pictures[0].ndim == 3:
            images = [picture if picture.dtype == np.uint8 else to_pixels(picture) for picture in pictures]
            images = [_sized(image, width, Image.Resampling.BICUBIC) for image in images]
            tiles[title] = [Image.fromarray(image) for image in images]
        else:
            labels = [_sized(label.astype(np.uint8), width, Image.Resampling.NEAREST) for label in pictures]
            under = images[: len(labels)] + [None] * (len(labels) - len(images))
            tiles[title] = [
                Image.fromarray(overlay(label, dataset, _fits(image, label)))
                for label, image in zip(labels, under, strict=True)
            ]
    return tiles


def _sized(picture: np.ndarray, width: int | None, resampling: Image.Resampling) -> np.ndarray:
    if width is None:
        factor = max(1, math.ceil(_LEAST_TILE / max(picture.shape[:2])))
        return picture.repeat(factor, 0).repeat(factor, 1)  # the pixels of a label stay square
    height = max(1, round(width * picture.shape[0] / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), resampling))


def _fits(image: np.ndarray | None, label: np.ndarray) -> np.ndarray | None:
    return image if image is not None and image.shape[:2] == label.shape else None


def _legend(columns: Mapping[str, Column], dataset: DatasetInfo) -> list[_Entry]:
    planes = [plane for column in columns.values() for plane in column if np.ndim(plane) == 2]
    found = sorted(set().union(*(np.unique(plane).tolist() for plane in planes)))
    entries = [(dataset.classes[i], i) for i in found if i < dataset.num_classes]
    return entries + ([("ignored", dataset.ignore_index)] if dataset.ignore_index in found else [])


def _wrap(legend: Sequence[_Entry], width: int) -> list[list[tuple[int, _Entry]]]:
    """Breaks the legend into lines of (left edge, entry)."""
    font = ImageFont.load_default(12)
    lines: list[list[tuple[int, _Entry]]] = []
    left = width
    for entry in legend:
        needed = 18 + int(font.getlength(entry[0])) + 14
        if left + needed > width:
            lines.append([])
            left = _GAP
        lines[-1].append((left, entry))
        left += needed
    return lines


def _fitting(title: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(title) > width and len(title) > 1:
        title = title[:-2] + "…"
    return title
