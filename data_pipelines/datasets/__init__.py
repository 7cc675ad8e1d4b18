"""Facts about datasets: class names, colors, the ignore index, published counts.

Each dataset has a JSON file in this folder with the fields of `DatasetInfo`. `palette` is optional: "voc" for the
colors of Pascal VOC, or one `[red, green, blue]` triple for each label index from 0 on. Without it, the background is
black, and the other classes have the colors of `distinct_colors`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.colors import distinct_colors
from data_pipelines.errors import InputError
from data_pipelines.files import as_path, is_utf8, read_json

_FOLDER = Path(__file__).parent
_REQUIRED = ("name", "classes", "ignore_index")
_OPTIONAL = ("palette", "background", "counts")


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset that cannot be computed from its files.

    Attributes:
        name: Short name, also the name of its JSON file.
        classes: Class names by label index.
        palette: uint8 [256, 3], the RGB color of each label index.
        ignore_index: Label of the pixels without a class, which are never scored.
        background: Index of the background class; None if the dataset has none.
        counts: Published number of images by split ("train", "val").
    """

    name: str
    classes: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int
    background: int | None
    counts: Mapping[str, int]

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes)


def dataset_info(name_or_path: str | Path) -> DatasetInfo:
    """Reads the facts about a dataset, by its name (a file in this folder) or by the path of a JSON file.

    Raises:
        InputError: The file is missing, or a field is missing, unknown or malformed.
    """
    path = as_path(name_or_path, "dataset")
    if path.suffix != ".json":
        path = _FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _FOLDER.glob("*.json")))
        raise InputError(
            f"dataset {str(name_or_path)!r} is unknown: name one of {known}, or give the path of a json file"
        )
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not valid json ({error}); fix the dataset file") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path}: must hold one json object with the fields {', '.join(_REQUIRED)}")
    if faults := _faults(facts):
        raise InputError(f"{path}: " + "; ".join(faults))
    return DatasetInfo(
        name=facts["name"],
        classes=tuple(facts["classes"]),
        palette=_palette(facts.get("palette"), len(facts["classes"]), facts.get("background")),
        ignore_index=facts["ignore_index"],
        background=facts.get("background"),
        counts=dict(facts.get("counts", {})),
    )


def voc_palette() -> np.ndarray:
    """The palette of Pascal VOC, uint8 [256, 3].

    Bits 0, 1, 2 of an index are the top bits of red, green and blue, bits 3, 4, 5 the next bits, and so on
    (`VOClabelcolormap.m` of the VOC development kit). Neighboring indices thus get very different colors.
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        channel, depth = bit % 3, bit // 3
        palette[:, channel] |= (((index >> bit) & 1) << (7 - depth)).astype(np.uint8)
    return palette


def _faults(facts: dict[str, Any]) -> list[str]:
    faults = [f"field {key!r} is missing" for key in _REQUIRED if key not in facts]
    faults += [f"field {key!r} is unknown" for key in facts if key not in _REQUIRED + _OPTIONAL]
    if faults:
        return faults
    classes, ignore, background = facts["classes"], facts["ignore_index"], facts.get("background")
    if not (isinstance(classes, list) and classes and all(map(_is_name, classes))):
        return ["'classes' must be a list of names"]
    if not _is_name(facts["name"]):
        faults.append("'name' must be a text that is not empty")
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        faults.append(f"'classes' names {', '.join(repeated)} more than once")
    if not (_is_count(ignore) and len(classes) <= ignore <= 255):
        faults.append(f"'ignore_index' is {ignore!r}: use a value from {len(classes)} to 255")
    if background is not None and not (_is_count(background) and background < len(classes)):
        faults.append(f"'background' is {background!r}: use a class index below {len(classes)}, or null")
    palette = facts.get("palette", "voc")
    if palette != "voc" and not _is_palette(palette):
        faults.append("'palette' must be \"voc\" or at most 256 [red, green, blue] triples of 0..255")
    counts = facts.get("counts", {})
    if not (isinstance(counts, dict) and all(map(_is_count, counts.values()))):
        faults.append("'counts' must be an object of numbers of images by split")
    return faults


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_utf8(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_palette(value: Any) -> bool:
    try:
        colors = np.array(value)
    except ValueError:
        return False
    fits = colors.ndim == 2 and colors.shape[1] == 3 and len(colors) <= 256 and colors.dtype.kind == "i"
    return bool(fits and colors.min() >= 0 and colors.max() <= 255)


def _palette(value: str | list[list[int]] | None, num_classes: int, background: int | None) -> np.ndarray:
    palette = voc_palette()
    if isinstance(value, list):
        palette[: len(value)] = np.array(value, np.uint8)
    elif value is None:
        others = [index for index in range(num_classes) if index != background]
        palette[others] = distinct_colors(len(others))
        if background is not None:
            palette[background] = 0
    return palette
