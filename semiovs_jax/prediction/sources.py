"""Where the images to predict come from: an image, a folder, a list, an archive, stdin or a video."""

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from data_pipelines.builders.archives import Members, member_path, opened_members
from data_pipelines.errors import InputError, first_few
from data_pipelines.files import local_path
from data_pipelines.images.checksums import ImageChecksum, read_ends
from data_pipelines.images.decode import decode_image, image_size
from data_pipelines.sources.folders import IMAGE_SUFFIXES, is_image, name_faults, open_images
from data_pipelines.sources.lists import collisions, list_lines
from data_pipelines.sources.records import EncodedImage, File, record_id
from semiovs_jax.evaluation.buckets import Size
from semiovs_jax.prediction.video import VIDEO_SUFFIXES, open_video

STDIN = "-"

_FIELD = "--source"
_LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
_ARCHIVE_SUFFIXES = frozenset({".zip", ".tar"})


class Picture(Protocol):
    """An image to predict; its methods may be called from several threads."""

    @property
    def id(self) -> str:
        """Path of its predictions below the output folders, without suffix."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    def size(self) -> Size:
        """(height, width), found without decoding it; raises `UnreadableError`."""

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3], upright; raises `UnreadableError`."""

    def checksum(self) -> ImageChecksum:
        """Changes with the image; raises `UnreadableError`."""


@dataclasses.dataclass(frozen=True)
class EncodedPicture:
    """A picture that is a file, or a member of an archive."""

    id: str
    image: EncodedImage

    @property
    def name(self) -> str:
        """The name of the file or member."""
        return self.image.name

    def size(self) -> Size:
        """See `Picture`."""
        return image_size(self.image)

    def pixels(self) -> np.ndarray:
        """See `Picture`."""
        return decode_image(self.image)

    def checksum(self) -> ImageChecksum:
        """See `Picture`."""
        with self.image.open() as stream:
            return read_ends(stream).checksum


@dataclasses.dataclass(frozen=True)
class Member:
    """An encoded image in an archive.

    Attributes:
      archive: the archive.
      member: its name there.
    """

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """ARCHIVE: MEMBER."""
        return member_path(self.archive, self.member)

    def open(self) -> BinaryIO:
        """A stream over the bytes; raises `UnreadableError`."""
        return io.BytesIO(self.read())

    def read(self) -> bytes:
        """The bytes; raises `UnreadableError`."""
        return opened_members(self.archive).read(self.member)


def open_source(source: str, stdin: Callable[[], bytes] = lambda: sys.stdin.buffer.read()) -> Sequence[Picture]:
    """The pictures that `--source` names, in order and without repetitions.

    Args:
      source: an image; a folder (all images below it); a text file with one path a line, relative to the file's folder;
        a zip or tar archive; a video; or "-", paths on stdin, a line each, relative to the working folder.
      stdin: reads stdin.

    Raises:
      InputError: the source is missing, holds no image or is damaged, or several images have the same id.
    """
    if source == STDIN:
        return _listed(stdin(), "stdin", Path.cwd())
    path = local_path(source, _FIELD)
    if path.is_dir():
        folder = open_images(path, "", (_FIELD, _FIELD))
        return [EncodedPicture(record.id, record.image) for record in (folder[i] for i in range(len(folder)))]
    if not path.is_file():
        raise InputError(
            f"{_FIELD}={source}: no such file or folder; name an image, a folder, a list, a zip or a video"
        )
    suffix = path.suffix.lower()
    if suffix in _LIST_SUFFIXES:
        return _listed(_read(path), str(path), path.absolute().parent)
    if suffix in _ARCHIVE_SUFFIXES:
        return _archived(path)
    if suffix in VIDEO_SUFFIXES:
        return open_video(path)
    _refuse_names([path.name])
    return [EncodedPicture(record_id(path.name), File(path))]


def _listed(content: bytes, name: str, folder: Path) -> list[EncodedPicture]:
    """The pictures of a list of paths; missing files are found when they are read."""
    paths = [_quoteless(line) for _, line in list_lines(content, name)]
    if not paths:
        raise InputError(f"{name}: names no image; write one path a line")
    files = dict.fromkeys(Path(os.path.abspath(folder / path)) for path in paths)  # noqa: PTH100, keeps links
    named = {_below(path, folder): path for path in files}
    _refuse_repeated(name, named)
    return [EncodedPicture(record_id(relative), File(path)) for relative, path in named.items()]


def _archived(path: Path) -> list[EncodedPicture]:
    members: Members = opened_members(path)
    names = [name for name in members.names() if is_image(name)]
    if not names:
        raise InputError(f"{path}: holds no image (looked for {', '.join(sorted(IMAGE_SUFFIXES))}); name another file")
    _refuse_repeated(str(path), names)
    return [EncodedPicture(record_id(name), Member(path, name)) for name in names]


def _below(path: Path, folder: Path) -> str:
    """The path relative to the folder; that of a file elsewhere relative to the root of the file system."""
    base = folder if path.is_relative_to(folder) else Path(path.anchor)
    return path.relative_to(base).as_posix()


def _refuse_repeated(name: str, paths: Iterable[str]) -> None:
    paths = list(paths)
    _refuse_names(paths)
    if faults := collisions(paths):
        raise InputError(f"{name}: {first_few(faults)}")


def _refuse_names(paths: Iterable[str]) -> None:
    if faults := name_faults(paths):
        raise InputError(f"{_FIELD}: {first_few(faults)}")


def _quoteless(line: str) -> str:
    line = line.strip()
    return line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line


def _read(path: Path) -> bytes:
    return File(path).read()
