r"""Writes split lists: the published ones, verified, or a class-balanced draw from a dataset of one's own.

    python -m data_pipelines.splits --dataset=voc2012 --out=data/pascal/splits
    python -m data_pipelines.splits --dataset=context60 --out=data/pascal_context/splits --from_folder=DIR
    python -m data_pipelines.splits --dataset=data/custom/classes.json --out=data/custom/splits \
        --make_split=100 --seed=0 --root=data/custom --list=splits/train.txt

The first two write every protocol's lists as published, byte for byte, where the experiments in `configs/` look for
them: `92/labeled.txt`, `92/unlabeled.txt`, `val.txt` and so on (see `published`). With `--from_folder` nothing
is fetched: DIR is the folder of the lists in a copy of their repository.

The third draws 100 images of a list of `IMAGE LABEL` lines (see `balanced`) for `labeled.txt` and leaves the rest
for `unlabeled.txt`.

Nothing is written unless everything is right: labeled, unlabeled and val lists that share an image are refused, and so
is a list that is there already and is another.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from data_pipelines.files import replace_file
from data_pipelines.sources.folders import open_list
from data_pipelines.sources.records import File, record_id
from data_pipelines.splits.balanced import classes_present, draw_balanced

_VAL = "val.txt"


class DrawnSplit(NamedTuple):
    """A split that `make_split` has drawn.

    Attributes:
        lists: Contents of "labeled.txt" and "unlabeled.txt".
        labeled: int [classes], labeled images that have a class.
        listed: int [classes], images of the whole list that have it.
    """

    lists: dict[str, bytes]
    labeled: np.ndarray
    listed: np.ndarray


def make_split(root: str, split: str, info: DatasetInfo, count: int, seed: int) -> DrawnSplit:
    """Draws `count` labeled images, class-balanced (see `balanced`), and leaves the rest unlabeled.

    Args:
        root: Folder that the list's paths are relative to.
        split: The list of `IMAGE LABEL` lines, relative to `root`.
        info: The dataset.
        count: Number of labeled images.
        seed: Not negative; the same list, labels and seed give the same split.

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
    lines = np.array([f"{image} {label}\n" for image, label in zip(source.images, labels, strict=True)])
    lists = {"labeled.txt": lines[drawn], "unlabeled.txt": np.delete(lines, drawn)}
    contents = {name: "".join(rows).encode() for name, rows in lists.items()}
    return DrawnSplit(contents, present[drawn].sum(axis=0), present.sum(axis=0))


def write_lists(folder: Path, contents: Mapping[str, bytes]) -> int:
    """Writes lists below a folder, each whole or not at all; those that are there already are left alone.

    Args:
        folder: The folder; made if missing. A `val.txt` in it is looked at even if it is not to be written.
        contents: Bytes by path below `folder`.

    Returns:
        How many lists were written.

    Raises:
        InputError: Lists share images (see `overlaps`), a list is there with other contents, or the folder cannot be
            read or written; unless that comes in the midst of writing, nothing was written.
    """
    try:
        present = {path: (folder / path).read_bytes() for path in {*contents, _VAL} if (folder / path).exists()}
        if faults := overlaps({**present, **contents}):
            raise InputError(f"{folder}: {first_few(faults)}; an image may be in one of them only")
        if different := sorted(path for path in contents if path in present and present[path] != contents[path]):
            raise InputError(
                f"{folder}: {first_few(different)}: there already, with other contents than would be written; "
                "remove what is not wanted, or name another --out"
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
    """Says which lists share images that must not: labeled and unlabeled of one folder, and val with any other.

    Args:
        contents: Bytes by path; a line's first column is an image, whose id is its path without suffix.
    """
    ids = {path: {record_id(line.split()[0]) for line in _lines(content)} for path, content in contents.items()}
    faults = []
    for path in sorted(ids):
        others = [_VAL] if path != _VAL else []
        if PurePosixPath(path).name == "labeled.txt":
            others.append(str(PurePosixPath(path).with_name("unlabeled.txt")))
        for other in others:
            if shared := sorted(ids[path] & ids.get(other, set())):
                faults.append(f"{path} and {other} share {len(shared)} image(s) ({first_few(shared, 3)})")
    return faults


def _lines(content: bytes) -> Iterator[str]:
    return (line for line in content.decode("utf-8-sig", errors="replace").splitlines() if line.strip())
