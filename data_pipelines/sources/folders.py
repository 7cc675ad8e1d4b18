"""Sources of image files: all images below a folder, or those in a split list.

A record holds file names and opens the files on demand, so a source of a million images costs only a list of names.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from data_pipelines.errors import InputError, first_few
from data_pipelines.files import expand
from data_pipelines.sources.records import File, Record, record_id

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Records of separate files below one folder.

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
        """False: the files may change at any time."""
        return False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        label = None if self.labels is None else File(self.root / self.labels[index])
        return Record(record_id(self.images[index]), File(self.root / self.images[index]), label)

    def ids(self) -> list[str]:
        """The ids of all records, in order."""
        return [record_id(image) for image in self.images]


def is_image(path: str) -> bool:
    """Whether a file has the suffix of an image and is not hidden."""
    name = PurePosixPath(path)
    return not name.name.startswith(".") and name.suffix.lower() in IMAGE_SUFFIXES


def files_below(root: Path) -> list[str]:
    """Sorted relative paths of all files below a folder. Follows links; skips hidden files and folders."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(folder).relative_to(root)
        found += [(here / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def collisions(images: Iterable[str]) -> list[str]:
    """One message for each id that several images share: their labels would overwrite each other."""
    ids = Counter(record_id(image) for image in set(images))
    return [
        f"{n} images with different suffixes have the id {id_}; rename all but one" for id_, n in ids.items() if n > 1
    ]


def open_list(root: str, split: str, names: tuple[str, str], *, with_labels: bool) -> FolderSource:
    """Opens the images of a split list, with their labels if wanted.

    Args:
        root: Folder that the list's paths are relative to.
        split: The list, relative to `root`: `IMAGE LABEL` lines. Without labels, `IMAGE` lines are valid, too.
        names: The names of `root` and `split` in error messages.
        with_labels: Whether the records have labels.

    Raises:
        InputError: The root or the list is missing, empty or malformed.
    """
    folder = existing_folder(root, names[0])
    images, labels = read_split(folder, split, names[1], with_labels=with_labels)
    return FolderSource(folder, images, labels)


def open_images(root: Path, split: str, names: tuple[str, str]) -> FolderSource:
    """Opens all images below a folder, or only those of a list.

    Args:
        root: The folder.
        split: The list, relative to `root`: `IMAGE` or `IMAGE LABEL` lines; "" for all images.
        names: The names of `root` and `split` in error messages.

    Raises:
        InputError: The list is missing, empty or malformed, there is no image, or several images have the same id.
    """
    if split:
        images, _ = read_split(root, split, names[1], with_labels=False)
        return FolderSource(root, images)
    return FolderSource(root, _images_below(root, names[0]))


def existing_folder(value: str, field: str) -> Path:
    """The path of the folder `value`; raises `InputError`, with the key `field`, if it is missing."""
    if not value:
        raise InputError(f"{field} is empty: set it to the folder of the images")
    root = expand(value)
    if not root.is_dir():
        raise InputError(f"{field}={value}: no such folder; create it, or set {field} to the folder of the images")
    return root


def prepared_dataset(root: Path) -> Path | None:
    """Finds a prepared dataset: `root` itself, or its highest version below `root`; None if there is none."""
    if (root / "dataset_info.json").is_file():
        return root
    versions = [
        path.parent for path in root.glob("*/dataset_info.json") if re.fullmatch(r"\d+(\.\d+)*", path.parent.name)
    ]
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def read_split(
    root: Path, split: str, field: str, *, with_labels: bool
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Reads a list of `IMAGE LABEL` lines. Without labels, `IMAGE` lines are valid, too.

    Args:
        root: Folder that the list's paths are relative to.
        split: The list, relative to `root`.
        field: The name of the list in error messages.
        with_labels: Whether to read the labels.

    Returns:
        Paths of the images, and paths of the labels or None.

    Raises:
        InputError: The list is missing, empty or malformed.
    """
    if not split:
        raise InputError(f"{field} is empty: set it to a list of `IMAGE LABEL` lines")
    path = root / split
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise InputError(f"{field}={split}: no such file ({path}); the path must be relative to {root}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write UTF-8 text, one image a line") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: the split is empty; write one `IMAGE LABEL` pair a line")
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
            f"there, or set {field} to the folder of the images"
        )
    if faults := collisions(found):
        raise InputError(f"{field}={root}: {first_few(faults)}")
    return tuple(found)
