r"""Writes split lists: the published ones, verified, or a class-balanced draw from a dataset of one's own.

    python -m data_pipelines.splits --dataset=voc2012 --out=data/pascal/splits
    python -m data_pipelines.splits --dataset=context60 --out=data/pascal_context/splits --from_folder=DIR
    python -m data_pipelines.splits --dataset=data/custom/classes.json --out=data/custom/splits \
        --make_split=100 --seed=0 --root=data/custom --list=splits/train.txt

The first two write every protocol's lists as published, byte for byte, where the experiments in `configs/` look for
them: `92/labeled.txt`, `92/unlabeled.txt`, `val.txt` and so on (see `published_splits`). With `--from_folder` nothing
is fetched: DIR is the folder of the lists in a copy of their repository.

The third draws 100 images of a list of `IMAGE LABEL` lines (see `balanced_draw`) for `labeled.txt` and leaves the rest
for `unlabeled.txt`.

Nothing is written unless everything is right: labeled, unlabeled and val lists that share an image are refused, and so
is a list that is there already and is another.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data_pipelines.balanced_draw import classes_present, draw_balanced
from data_pipelines.datasets import DatasetInfo, load_dataset
from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from data_pipelines.published_splits import fetch_lists, load_published, read_lists
from data_pipelines.sources import File, first_few, open_list, record_id

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
    """Draws `count` labeled images, class-balanced (see `balanced_draw`), and leaves the rest unlabeled.

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
            replace_file(folder / path, contents[path], mend="name an --out you may write to")
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


def _class_table(split: DrawnSplit, info: DatasetInfo) -> str:
    rows = [("labeled", "of", "class"), *zip(split.labeled, split.listed, info.classes, strict=True)]
    return "\n".join(f"{labeled!s:>7} {listed!s:>7}  {name}" for labeled, listed, name in rows)


def _run(flags: argparse.Namespace) -> None:
    if flags.make_split is not None:
        info = load_dataset(flags.dataset)
        split = make_split(flags.root, flags.list, info, flags.make_split, flags.seed)
        contents = split.lists
        print(_class_table(split, info))
    else:
        published = load_published(flags.dataset)
        print(f"{len(published.lists)} lists of {published.repository} at {published.revision}, {published.folder}")
        contents = read_lists(published, flags.from_folder) if flags.from_folder else fetch_lists(published)
    written = write_lists(flags.out, contents)
    print(f"{flags.out}: {written} lists written, {len(contents) - written} there already")


def main() -> None:
    """Command line; an `InputError` ends it with its message and status 2."""
    parser = argparse.ArgumentParser(description="Writes published split lists, or a class-balanced draw.")
    parser.add_argument("--dataset", required=True, help="voc2012 or context60; with --make_split a dataset file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the lists to")
    parser.add_argument("--from_folder", type=Path, help="read the published lists here instead of fetching them")
    parser.add_argument("--make_split", type=int, metavar="N", help="draw N labeled images of --list")
    parser.add_argument("--seed", type=int, default=0, help="of --make_split; default: %(default)s")
    parser.add_argument("--root", default="", help="of --make_split: folder of the images and labels")
    parser.add_argument("--list", default="", help="of --make_split: `IMAGE LABEL` lines, relative to --root")
    flags = parser.parse_args()
    if flags.make_split is None and (flags.root or flags.list or flags.seed):
        parser.error("--root, --list and --seed go with --make_split")
    if flags.make_split is not None and flags.from_folder:
        parser.error("--from_folder does not go with --make_split")
    try:
        _run(flags)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
