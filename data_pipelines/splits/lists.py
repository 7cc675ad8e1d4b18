r"""Writes split lists: the published ones, verified, or a class-balanced draw from your own dataset.

    python -m data_pipelines.splits --dataset=voc2012 --out=data/pascal/splits
    python -m data_pipelines.splits --dataset=context60 --out=data/pascal_context/splits --from_folder=DIR
    python -m data_pipelines.splits --dataset=data/custom/classes.json --out=data/custom/splits \
        --make_split=100 --seed=0 --root=data/custom --list=splits/train.txt

The first two commands write the published lists of all protocols, byte for byte, to the paths in `configs/`:
`92/labeled.txt`, `92/unlabeled.txt`, `val.txt` and so on (see `published`). With `--from_folder`, nothing is
downloaded: DIR is the folder of the lists in a copy of their repository.

The third command draws 100 images from a list of `IMAGE LABEL` lines (see `balanced`). They become `labeled.txt`, the
others `unlabeled.txt`.

Everything is checked before the first list is written. It is an error if labeled, unlabeled and val lists share an
image, or if a list already exists with other contents.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from data_pipelines.files import replace_file
from data_pipelines.sources.folders import open_list
from data_pipelines.sources.lists import join_columns, list_lines, split_columns
from data_pipelines.sources.records import File, record_id
from data_pipelines.splits.balanced import classes_present, draw_balanced

_VAL = "val.txt"


class DrawnSplit(NamedTuple):
    """A split drawn by `make_split`.

    Attributes:
        lists: Contents of "labeled.txt" and "unlabeled.txt".
        labeled: int [classes], number of labeled images with each class.
        listed: int [classes], number of images with each class in the whole list.
    """

    lists: dict[str, bytes]
    labeled: np.ndarray
    listed: np.ndarray


def make_split(root: str, split: str, info: DatasetInfo, count: int, seed: int) -> DrawnSplit:
    """Draws `count` labeled images, class-balanced (see `balanced`). The others are unlabeled.

    Args:
        root: Folder that the list's paths are relative to.
        split: The list of `IMAGE LABEL` lines, relative to `root`.
        info: The dataset.
        count: Number of labeled images.
        seed: Not negative; equal lists, labels and seeds give equal splits.

    Raises:
        InputError: The list or a label cannot be used, or `count` or `seed` is out of range.
    """
    source = open_list(root, split, ("--root", "--list"), with_labels=True)
    labels = source.labels or ()
    path = source.root / split
    if repeated := len(source) - len(set(source.images)):
        raise InputError(f"{path}: {repeated} image(s) are listed more than once; keep one line each")
    if not 0 < count < len(source):
        raise InputError(
            f"--make_split={count}: {path} lists {len(source)} images; draw at least 1 and leave at least 1 unlabeled"
        )
    if seed < 0:
        raise InputError(f"--seed={seed}: use a seed of at least 0")
    present = classes_present([File(source.root / label) for label in labels], info)
    drawn = draw_balanced(present, count, seed)
    lines = np.array([join_columns(row) for row in zip(source.images, labels, strict=True)])
    lists = {"labeled.txt": lines[drawn], "unlabeled.txt": np.delete(lines, drawn)}
    contents = {name: "".join(rows).encode() for name, rows in lists.items()}
    return DrawnSplit(contents, present[drawn].sum(axis=0), present.sum(axis=0))


def write_lists(folder: Path, contents: Mapping[str, bytes]) -> int:
    """Writes lists below a folder, each atomically. Lists that already exist are kept.

    Args:
        folder: The folder; created if missing. Its `val.txt` is checked, too, even if `contents` has none.
        contents: Bytes by path below `folder`.

    Returns:
        Number of lists written.

    Raises:
        InputError: Lists share images (see `overlaps`), a list exists with other contents, or the folder cannot be
            read or written. No list was written then, unless the error came while writing.
    """
    try:
        present = {path: (folder / path).read_bytes() for path in {*contents, _VAL} if (folder / path).exists()}
        if faults := overlaps({**present, **contents}):
            raise InputError(f"{folder}: {first_few(faults)}; keep each image in one of them only")
        if different := sorted(path for path in contents if path in present and present[path] != contents[path]):
            raise InputError(
                f"{folder}: {first_few(different)}: already there with other contents; remove it, or name another --out"
            )
        missing = [path for path in contents if path not in present]
        for path in missing:
            replace_file(folder / path, contents[path], remedy="name an --out you may write to")
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be read or written ({error.strerror or error}); name an --out you may "
            "write to"
        ) from error
    return len(missing)


def overlaps(contents: Mapping[str, bytes]) -> list[str]:
    """One message for each pair of lists that must not share images, but does: val and any, labeled and unlabeled.

    Args:
        contents: Bytes by path. The first column of a line is an image; its id is its path without suffix.
    """
    ids = {path: {record_id(image) for image in _images(path, content)} for path, content in contents.items()}
    faults = []
    for path in sorted(ids):
        others = [_VAL] if path != _VAL else []
        if PurePosixPath(path).name == "labeled.txt":
            others.append(str(PurePosixPath(path).with_name("unlabeled.txt")))
        for other in others:
            if shared := sorted(ids[path] & ids.get(other, set())):
                faults.append(f"{path} and {other} share {len(shared)} image(s) ({first_few(shared, 3)})")
    return faults


def _images(path: str, content: bytes) -> Iterator[str]:
    images = (columns[0] for _, line in list_lines(content, path) if (columns := split_columns(line)))
    return (image for image in images if PurePosixPath(image).name)
