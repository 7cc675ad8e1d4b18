"""Mixtures of OOD sources, drawn in fixed shares. `config.data.ood_root` is the path of a JSON file.

    {"sources": [{"name": "coco", "root": "coco/train2017", "weight": 2},
                 {"name": "web", "root": "/mnt/web/1.0.0", "split": "train", "weight": 1, "once": true}]}

`root` and `split` have the meaning of `config.data.ood_root` and `ood_split`; a relative root is relative to the file.
`weight` (default 1) is the share of the source in the draws. A source with `once` (default false) is a stream: its
images are drawn in order, each at most once in a run. The id of an image is the name of the source, "/", and the id in
the source: "coco/000000000009".
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.errors import InputError, first_few
from data_pipelines.files import expand, is_utf8, read_json
from data_pipelines.sources.records import ConcatenatedSource, Record, Source

_FIELDS = {"name": str, "root": str, "split": str, "weight": (int, float), "once": bool}
_REQUIRED = ("name", "root")


class Part(NamedTuple):
    """One source of a mixture.

    Attributes:
        source: Its records.
        start: Position of its first record in the mixture.
        weight: Its share of the draws, relative to the other parts'.
        once: Whether its records are drawn in order, each at most once in a run.
    """

    source: Source
    start: int = 0
    weight: float = 1.0
    once: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture(ConcatenatedSource):
    """The records of several sources, one source after the other, with the weights by which they are drawn.

    Attributes:
        weights: Share of each source in the draws, relative to the other sources'.
        once: Whether the records of each source are drawn in order, each at most once in a run.
    """

    weights: tuple[float, ...]
    once: tuple[bool, ...]

    @property
    def parts(self) -> list[Part]:
        """Each source with its position, weight and `once`."""
        starts = itertools.accumulate(map(len, self.sources[:-1]), initial=0)
        return [Part(*facts) for facts in zip(self.sources, starts, self.weights, self.once, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class NamedSource:
    """A source whose ids begin with its name."""

    name: str
    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        return dataclasses.replace(record, id=f"{self.name}/{record.id}")

    @property
    def prepared(self) -> bool:
        """Whether the underlying source is prepared."""
        return self.source.prepared

    @property
    def stamp(self) -> str:
        """That of the underlying source."""
        return self.source.stamp

    def ids(self) -> list[str]:
        """The ids of all records, in order."""
        return [f"{self.name}/{id_}" for id_ in self.source.ids()]


def open_mixture(path: Path, open_source: Callable[[Path, str, str], Source]) -> Mixture:
    """Opens the sources of a mixture file.

    Args:
        path: The file.
        open_source: Opens a source by its root, its split, and its name in error messages.

    Raises:
        InputError: The file is unreadable or invalid, or a source cannot be opened.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a mixture of OOD sources ({error}); fix the JSON") from error
    entries = content.get("sources") if isinstance(content, dict) and set(content) == {"sources"} else None
    if not (isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)):
        raise InputError(f'{path}: must hold {{"sources": [{{"name": ..., "root": ...}}, ...]}} and no other key')
    if faults := [fault for index, entry in enumerate(entries) for fault in _faults(index, entry)]:
        raise InputError(f"{path}: {first_few(faults)}")
    names = [entry["name"] for entry in entries]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: several sources have the name(s) {', '.join(repeated)}; rename all but one")
    sources = []
    for entry in entries:
        root = path.parent / expand(entry["root"])
        source = open_source(root, entry.get("split", ""), f"{path}: source {entry['name']}")
        sources.append(NamedSource(entry["name"], source))
    weights = tuple(float(entry.get("weight", 1)) for entry in entries)
    return Mixture(tuple(sources), weights, tuple(entry.get("once", False) for entry in entries))


def _faults(index: int, entry: dict[str, Any]) -> list[str]:
    faults = [f"source {index} lacks {key!r}" for key in _REQUIRED if key not in entry]
    for key, value in entry.items():
        kind = _FIELDS.get(key)
        if kind is None:
            faults.append(f"source {index} has the unknown field {key!r}; known are {', '.join(_FIELDS)}")
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # type: ignore[arg-type]
            faults.append(f"source {index} has {key!r}: {value!r}, which has the wrong type")
        elif isinstance(value, str) and not is_utf8(value):
            faults.append(f"source {index} has {key!r}: {value!r}, which is not UTF-8; rename the file or folder")
    name, weight = entry.get("name"), entry.get("weight", 1)
    if isinstance(name, str) and (not name.isprintable() or "/" in name or name in ("", ".", "..")):
        faults.append(f"source {index} has the name {name!r}: use a word that can be a folder's name")
    if isinstance(weight, int | float) and not 0 < weight <= sys.float_info.max:
        faults.append(f"source {index} has the weight {weight}: use a positive number")
    return faults
