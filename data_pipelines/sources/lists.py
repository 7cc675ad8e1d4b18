"""Split lists: text files with one image a line, `IMAGE LABEL` or `IMAGE`, with "/" between folders.

A line with a tab is split at tabs, any other line at spaces. A name with spaces (or one that begins with "#") may also
be in double quotes. Lines that begin with "#" and empty lines are skipped.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_pipelines.errors import InputError, first_few
from data_pipelines.sources.records import record_id

_SPACES = " \t\r"
# Of names that a list may hold. A second column with such a suffix, after a first one without, is half of a name.
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_HOW_TO_QUOTE = "put a name that has spaces in double quotes, or separate the columns with a tab"


class Split(NamedTuple):
    """The content of a split list.

    Attributes:
        images: Paths of the images, relative to the root.
        labels: Paths of the labels; None if they are not read.
        unread_labels: Number of lines whose label is not read.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...] | None
    unread_labels: int


def read_split(root: Path, split: str, field: str, *, with_labels: bool) -> Split:
    """Reads a list of `IMAGE LABEL` lines. Without labels, `IMAGE` lines are valid, too.

    Args:
        root: Folder that the list's paths are relative to.
        split: The list, relative to `root`.
        field: The name of the list in error messages.
        with_labels: Whether to read the labels.

    Raises:
        InputError: The list is missing, empty or malformed.
    """
    wanted = "`IMAGE LABEL`" if with_labels else "`IMAGE`"
    if not split:
        raise InputError(f"{field} is empty: set it to a list of {wanted} lines")
    path = root / split
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{field}={split}: no such file ({path}); the path must be relative to {root}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write UTF-8 text, one image a line") from error
    rows, faults = [], []
    for number, line in list_lines(content, str(path)):
        columns = split_columns(line)
        rows.append(columns)
        if fault := _line_fault(line, columns, with_labels):
            faults.append(f"line {number}: {fault}")
    if not rows:
        raise InputError(f"{path}: the split is empty; write one {wanted} a line")
    if not faults:
        faults = collisions(columns[0] for columns in rows)
    if faults:
        raise InputError(f"{path}: {len(faults)} fault(s): {first_few(faults)}")
    images = tuple(columns[0] for columns in rows)
    if with_labels:
        return Split(images, tuple(columns[1] for columns in rows), 0)
    return Split(images, None, sum(len(columns) > 1 for columns in rows))


def list_lines(content: bytes, name: str) -> Iterator[tuple[int, str]]:
    """The number and text of each line of a list that names an image.

    Args:
        content: The list.
        name: Its name in error messages.

    Raises:
        InputError: A line is not UTF-8.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        line = content.split(b"\n")[number - 1].strip().decode(errors="backslashreplace")
        raise InputError(
            f"{name}: line {number} is not UTF-8: {line[:200]!r}; rename the file and write the list as UTF-8 text"
        ) from error
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if (shown := line.strip(_SPACES)) and not shown.startswith("#"):
            yield number, line


def split_columns(line: str) -> list[str]:
    """The columns of a line that names an image; none if its quotes cannot be read."""
    delimiter = "\t" if "\t" in line.strip(_SPACES) else " "
    try:
        (columns,) = csv.reader([line.strip(_SPACES)], delimiter=delimiter, skipinitialspace=True, strict=True)
    except csv.Error:
        return []
    return [column.strip(_SPACES) for column in columns if column.strip(_SPACES)]


def join_columns(columns: Sequence[str]) -> str:
    """A line, with its end, of which `split_columns` gives these columns."""
    if not columns[0].startswith("#") and not any(set(column) & set(' \t"') for column in columns):
        return f"{' '.join(columns)}\n"
    line, delimiter = io.StringIO(), "\t" if any("\t" in column for column in columns) else " "
    csv.writer(line, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(columns)
    return line.getvalue()


def collisions(images: Iterable[str]) -> list[str]:
    """One message for each id that several images share: their labels would overwrite each other."""
    ids = Counter(record_id(image) for image in set(images))
    return [
        f"{n} images with different suffixes have the id {id_}; rename all but one" for id_, n in ids.items() if n > 1
    ]


def _line_fault(line: str, columns: Sequence[str], with_labels: bool) -> str | None:
    wanted = "`IMAGE LABEL`" if with_labels else "`IMAGE LABEL` or `IMAGE`"
    line = line.strip(_SPACES)
    if not columns:
        return f"{line!r} has quotes that do not match; close each double quote, and double those within a name"
    if len(columns) > 2 or (with_labels and len(columns) != 2):
        quote = f"; {_HOW_TO_QUOTE}" if len(columns) > 2 else ""
        return f"{line!r} has {len(columns)} column(s), expected {wanted}{quote}"
    if len(columns) == 2 and not {"\t", '"'} & set(line) and _is_half_a_name(*columns):
        return f"{line!r} is read as the image {columns[0]!r} and the label {columns[1]!r}; {_HOW_TO_QUOTE}"
    for column in columns:
        path = PurePosixPath(column)
        if "\\" in column:
            return f"{column!r} has a backslash; write / between folders"
        if path.is_absolute() or ".." in path.parts:
            return f"{column!r} must be a path below the root"
        if not path.name or "\0" in column:
            return f"{column!r} is not the name of a file"
    return None


def _is_half_a_name(image: str, label: str) -> bool:
    first, second = (PurePosixPath(column).suffix.lower() for column in (image, label))
    return first not in _SUFFIXES and second in _SUFFIXES
