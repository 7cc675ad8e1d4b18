"""The report of a preparation, as text and as the file report.json of the dataset."""

import json
import operator
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.builders.samples import BadFile
from data_pipelines.errors import InputError
from data_pipelines.files import read_json, replace_file

_FILE = "report.json"


class Dropped(NamedTuple):
    """An image that was left out because it duplicates an evaluation image.

    Attributes:
        file: The unit's name and the image's id.
        evaluation: Id of the evaluation image.
        kind: "exact" or "near".
        distance: Number of bits in which the perceptual hashes differ.
    """

    file: str
    evaluation: str
    kind: str
    distance: int


class Report(NamedTuple):
    """The result of a preparation.

    Attributes:
        images: Examples in the dataset by split.
        evaluation_images: Number of evaluation images whose duplicates were searched; None without a search.
        bad: The files that cannot be used.
        dropped: The duplicates of evaluation images.
        repeated: Number of examples whose image has the bytes of an earlier example; they stay in the dataset. None if
            unknown.
    """

    images: dict[str, int]
    evaluation_images: int | None
    bad: list[BadFile]
    dropped: list[Dropped]
    repeated: int | None

    def summary(self, limit: int = 20) -> str:
        """Counts, and the first `limit` files of each list."""
        rows = [
            *(f"{count:>9,} images in the split {split}" for split, count in self.images.items()),
            *([] if self.repeated is None else [f"{self.repeated:>9,} of them repeat the bytes of another"]),
            f"{len(self.bad):>9,} bad files left out",
            *_first([f"{file.name}: {file.reason}" for file in self.bad], limit, "metadata.json"),
        ]
        if self.evaluation_images is None:
            return "\n".join([*rows, "          no search for duplicates of evaluation images"])
        kinds = Counter(image.kind for image in self.dropped)
        rows += [
            f"{len(self.dropped):>9,} duplicates of {self.evaluation_images:,} evaluation images dropped "
            f"({kinds['exact']:,} exact, {kinds['near']:,} near)",
            *_first([_sentence(image) for image in self.dropped], limit, _FILE),
        ]
        return "\n".join(rows)

    def write(self, folder: Path) -> None:
        """Writes report.json, the last file of a dataset; raises `InputError` if it cannot be written."""
        lists = {name: [item._asdict() for item in getattr(self, name)] for name in ("bad", "dropped")}
        replace_file(folder / _FILE, json.dumps(self._asdict() | lists, indent=1).encode() + b"\n")


def read_report(folder: Path) -> Report | None:
    """Reads the report of a dataset; None if it is incomplete. Raises `InputError` if it is unreadable."""
    try:
        found = read_json(folder / _FILE)
        return Report(
            images={split: operator.index(count) for split, count in dict(found["images"]).items()},
            evaluation_images=_count(found["evaluation_images"]),
            bad=[BadFile(**file) for file in found["bad"]],
            dropped=[Dropped(**image) for image in found["dropped"]],
            repeated=_count(found["repeated"]),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / _FILE}: cannot be read ({error}); remove {folder} to start again") from error


def _count(value: Any) -> int | None:
    return None if value is None else operator.index(value)


def _first(lines: Sequence[str], limit: int, file: str) -> list[str]:
    more = [f"and {len(lines) - limit:,} more: see {file}"] if len(lines) > limit else []
    lines = [line.encode(errors="backslashreplace").decode() for line in lines[:limit]]  # names may not be UTF-8
    return [f"          {line}" for line in (*lines, *more)]


def _sentence(image: Dropped) -> str:
    if image.kind == "exact":
        return f"{image.file} is {image.evaluation}"
    return f"{image.file} is nearly {image.evaluation} ({image.distance} of 64 bits differ)"
