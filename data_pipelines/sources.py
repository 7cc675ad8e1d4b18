"""Where records come from: split lists over a VOC-layout tree, every image below a folder, or shards.

A source is a sized, indexable collection of `Record`s. A record names its files and opens them only when
asked, so a source of a million images costs a list of names.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np

from data_pipelines.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class UnreadableError(InputError):
    """A file that is missing, empty or damaged: the one fault for which another record may stand in."""


class Encoded(Protocol):
    """An encoded image that is read when asked for."""

    @property
    def name(self) -> str:
        """What error messages call it, usually a path."""

    def open(self) -> BinaryIO:
        """A stream over the encoded bytes; raises `UnreadableError` if there is none."""

    def read(self) -> bytes:
        """All encoded bytes; raises `UnreadableError` if they cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """An encoded image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def open(self) -> BinaryIO:
        """Opens the file for reading; raises `UnreadableError` if it cannot be."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def read(self) -> bytes:
        """The file's bytes; raises `UnreadableError` if they cannot be read."""
        with self.open() as stream:
            try:
                return stream.read()
            except OSError as error:
                raise UnreadableError(f"{self.path}: cannot be read ({error.strerror or error})") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image and what is known about it.

    Attributes:
        id: Path of the image relative to the source's root, without suffix, with "/" between folders.
        image: The encoded photograph.
        label: The encoded label plane (class indices), if the source has labels.
        confidence: The encoded confidence plane (8-bit gray, 255 is certain), if the label is a pseudo-label.
    """

    id: str
    image: Encoded
    label: Encoded | None = None
    confidence: Encoded | None = None


class Source(Protocol):
    """A sized, indexable collection of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    @property
    def prepared(self) -> bool:
        """Whether the images were looked at when the records were written, as those of shards were."""
        ...

    def ids(self) -> Sequence[str]:
        """The ids of all records, in order."""
        ...


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Records that lie in a folder as separate files.

    Attributes:
        root: The folder.
        images: Path of each image, relative to `root`.
        labels: Path of each label, relative to `root`; None for images without labels.
    """

    root: Path
    images: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    @property
    def prepared(self) -> bool:
        """Files may change at any time."""
        return False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        label = None if self.labels is None else File(self.root / self.labels[index])
        return Record(record_id(self.images[index]), File(self.root / self.images[index]), label)

    def ids(self) -> list[str]:
        """The ids of all records, in order."""
        return [record_id(image) for image in self.images]


@dataclasses.dataclass(frozen=True, eq=False)
class SelectedSource:
    """Some records of a source.

    Attributes:
        source: The source.
        positions: Which of its records, in order, int64 [N].
    """

    source: Source
    positions: np.ndarray

    @property
    def prepared(self) -> bool:
        """Whether the source is."""
        return self.source.prepared

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.positions[index])]

    def ids(self) -> list[str]:
        """The ids of the selected records, in order."""
        ids = self.source.ids()
        return [ids[position] for position in self.positions]


@dataclasses.dataclass(frozen=True, eq=False)
class ConcatenatedSource:
    """The records of several sources, one source after the other.

    Attributes:
        sources: The sources.
    """

    sources: tuple[Source, ...]

    @property
    def prepared(self) -> bool:
        """Whether all sources are."""
        return all(source.prepared for source in self.sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Record:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    def ids(self) -> list[str]:
        """The ids of all records, in order."""
        return [id_ for source in self.sources for id_ in source.ids()]


def record_id(image: str) -> str:
    """The id of an image: its relative path without the suffix."""
    return str(PurePosixPath(image).with_suffix(""))


def is_image(path: str) -> bool:
    """Whether a file is an image, by its suffix; hidden files are not."""
    name = PurePosixPath(path)
    return not name.name.startswith(".") and name.suffix.lower() in IMAGE_SUFFIXES


def files_below(root: Path) -> list[str]:
    """Every file below a folder, relative to it, sorted; follows links, leaves out what is hidden."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(folder).relative_to(root)
        found += [(here / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def collisions(images: Iterable[str]) -> list[str]:
    """Different images whose ids are equal: their labels would overwrite each other."""
    ids = Counter(record_id(image) for image in set(images))
    return [
        f"{id_} stands for {n} images with different suffixes, rename all but one" for id_, n in ids.items() if n > 1
    ]


def open_list(root: str, split: str, names: tuple[str, str], *, with_labels: bool) -> FolderSource:
    """Opens the files that a split list names.

    Args:
        root: Folder that the list's paths are relative to.
        split: The list, `IMAGE LABEL` lines (or `IMAGE` lines where no labels are wanted), relative to `root`.
        names: What error messages call `root` and `split`.
        with_labels: Whether the records have labels.

    Raises:
        InputError: The root or the list is missing, empty or malformed.
    """
    folder = existing_folder(root, names[0])
    images, labels = read_split(folder, split, names[1], with_labels=with_labels)
    return FolderSource(folder, images, labels)


def open_images(root: Path, split: str, names: tuple[str, str]) -> FolderSource:
    """Opens every image below a folder, or those that a list names.

    Args:
        root: The folder.
        split: The list, `IMAGE` or `IMAGE LABEL` lines, relative to `root`; "" for every image.
        names: What error messages call `root` and `split`.

    Raises:
        InputError: The list is missing, empty or malformed, there is no image, or several have the same id.
    """
    if split:
        images, _ = read_split(root, split, names[1], with_labels=False)
        return FolderSource(root, images)
    return FolderSource(root, _images_below(root, names[0]))


def existing_folder(value: str, field: str) -> Path:
    """The folder `value`; raises `InputError`, which calls it `field`, if there is none."""
    if not value:
        raise InputError(f"{field} is empty: name the folder that holds the images")
    root = Path(value).expanduser()
    if not root.is_dir():
        raise InputError(
            f"{field}={value}: no such folder; create it, or set {field} to the folder that holds the images"
        )
    return root


def prepared_dataset(root: Path) -> Path | None:
    """The folder of a prepared dataset: `root`, or its highest version below `root`; None if there is none."""
    if (root / "dataset_info.json").is_file():
        return root
    versions = [
        path.parent for path in root.glob("*/dataset_info.json") if re.fullmatch(r"\d+(\.\d+)*", path.parent.name)
    ]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def read_split(
    root: Path, split: str, field: str, *, with_labels: bool
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Reads a list of `IMAGE LABEL` lines (or `IMAGE` lines where no labels are wanted).

    Args:
        root: Folder that the list's paths are relative to.
        split: The list, relative to `root`.
        field: What error messages call the list.
        with_labels: Whether labels are wanted.

    Returns:
        The images' paths, and the labels' paths or None.

    Raises:
        InputError: The list is missing, empty or malformed.
    """
    if not split:
        raise InputError(f"{field} is empty: name a list of `IMAGE LABEL` lines")
    path = root / split
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{field}={split}: no such file ({path}); a path is taken relative to {root}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a split list ({error})") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: the split is empty; list one `IMAGE LABEL` pair a line")
    faults = [f"line {n}: {fault}" for n, columns in rows if (fault := _line_fault(columns, with_labels))]
    if not faults:
        faults = collisions(columns[0] for _, columns in rows)
    if faults:
        raise InputError(f"{path}: {len(faults)} fault(s): {first_few(faults)}")
    images = tuple(columns[0] for _, columns in rows)
    return images, tuple(columns[1] for _, columns in rows) if with_labels else None


def _line_fault(columns: Sequence[str], with_labels: bool) -> str | None:
    wanted = "`IMAGE LABEL`" if with_labels else "`IMAGE LABEL` or `IMAGE`"
    if len(columns) > 2 or (with_labels and len(columns) != 2):
        return f"{' '.join(columns)!r} has {len(columns)} column(s), expected {wanted}"
    for column in columns:
        path = PurePosixPath(column)
        if path.is_absolute() or ".." in path.parts:
            return f"{column!r} must be a path below the root"
    return None


def _images_below(root: Path, field: str) -> tuple[str, ...]:
    found = [path for path in files_below(root) if is_image(path)]
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(
            f"{field}={root}: no image below this folder (looked for {suffixes}); put images "
            f"there, or set {field} to the folder that holds them"
        )
    if faults := collisions(found):
        raise InputError(f"{field}={root}: {first_few(faults)}")
    return tuple(found)


def first_few(faults: Sequence[str], limit: int = 5) -> str:
    """The first `limit` messages in one line, and how many there are in all where there are more."""
    more = f"; and {len(faults) - limit} more" if len(faults) > limit else ""
    return "; ".join(faults[:limit]) + more
