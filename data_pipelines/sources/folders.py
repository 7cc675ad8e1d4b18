"""Sources of image files: all images below a folder, or those in a split list.

A record holds file names and opens the files on demand, so a source of a million images costs only a list of names.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from data_pipelines.errors import InputError, first_few
from data_pipelines.files import expand, is_utf8, url_fault
from data_pipelines.sources.lists import collisions, read_split
from data_pipelines.sources.records import File, Record, record_id

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Records of separate files below one folder.

    Attributes:
        root: The folder.
        images: Path of each image, relative to `root`.
        labels: Path of each label, relative to `root`; None for images without labels.
        unread_labels: Number of labels that the split list names and that are not read.
        left_out: Number of files below `root` that are no images, by suffix in lower case; empty for a list.
    """

    root: Path
    images: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    unread_labels: int = 0
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def prepared(self) -> bool:
        """False: the files may change at any time."""
        return False

    @property
    def stamp(self) -> str:
        """Empty: each file must be read to find a change."""
        return ""

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
    """Sorted relative paths of all files below a folder. Skips hidden files and folders.

    Follows links, but not one to a folder that it is in: the walk would have no end.
    """
    found = []
    above: dict[str, tuple[tuple[int, int], ...]] = {}  # devices and inodes of the folders above a folder
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status, around = Path(folder).stat(), above.pop(folder, ())
        identity = status.st_dev, status.st_ino
        if identity in around:
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        above |= {os.path.join(folder, name): (*around, identity) for name in subfolders}  # noqa: PTH118, as os.walk
        here = Path(folder).relative_to(root)
        found += [(here / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def name_faults(paths: Iterable[str]) -> list[str]:
    """One message for each path that is not UTF-8: it could not be printed, logged or stored."""
    return [f"the name {path!r} is not UTF-8; rename the file" for path in paths if not is_utf8(path)]


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
    return FolderSource(folder, *read_split(folder, split, names[1], with_labels=with_labels))


def open_images(root: Path, split: str, names: tuple[str, str]) -> FolderSource:
    """Opens all images below a folder, or only those of a list.

    Args:
        root: The folder.
        split: The list, relative to `root`: `IMAGE` or `IMAGE LABEL` lines; "" for all images.
        names: The names of `root` and `split` in error messages.

    Raises:
        InputError: The list is missing, empty or malformed, there is no image, the name of an image is not UTF-8, or
            several images have the same id.
    """
    if split:
        return FolderSource(root, *read_split(root, split, names[1], with_labels=False))
    return _open_folder(root, names[0])


def existing_folder(value: str, field: str) -> Path:
    """The path of the folder `value`; raises `InputError`, with the key `field`, if it is missing."""
    if not value:
        raise InputError(f"{field} is empty: set it to the folder of the images")
    if not is_utf8(value):
        raise InputError(f"{field}={value!r}: the name is not UTF-8; rename the folder")
    if fault := url_fault(value, field):
        raise InputError(fault)
    root = expand(value)
    try:
        found = root.is_dir()
    except OSError as error:
        raise InputError(f"{field}={value}: cannot be read ({error.strerror or error}); name another folder") from error
    if not found:
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


def _open_folder(root: Path, field: str) -> FolderSource:
    files = files_below(root)
    found = [path for path in files if is_image(path)]
    if not found:
        if shard := next((path for path in files if ".array_record" in path), None):
            lacking = PurePosixPath(shard).with_name("dataset_info.json")
            raise InputError(
                f"{field}={root}: holds {shard} without {lacking}; put that file back, or prepare the dataset again"
            )
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(
            f"{field}={root}: no image below this folder (looked for {suffixes}); put images "
            f"there, or set {field} to the folder of the images"
        )
    if faults := name_faults(found) or collisions(found):
        raise InputError(f"{field}={root}: {first_few(faults)}")
    others = (PurePosixPath(path).suffix.lower() for path in files if not is_image(path))
    left_out = Counter(suffix.encode(errors="backslashreplace").decode() for suffix in others)
    return FolderSource(root, tuple(found), left_out=tuple(sorted(left_out.items())))
