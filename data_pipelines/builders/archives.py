"""The files in a zip or tar archive, or in the folder it was extracted to.

Members are read where they lie: nothing is written to disk. An archive with a member that could leave the folder it is
extracted to (an absolute path, "..", a link, a device) is refused as a whole.
"""

import dataclasses
import functools
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, Protocol

from data_pipelines.errors import InputError
from data_pipelines.sources.folders import files_below
from data_pipelines.sources.records import File, UnreadableError

_BLOCK = 512  # bytes; a complete tar ends with blocks of zeros


class Members(Protocol):
    """Named files that can be read in any order."""

    @property
    def path(self) -> Path:
        """Where they are, for error messages."""
        ...

    def names(self) -> list[str]:
        """Relative paths with "/" between folders, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one of `names`; raises `UnreadableError` if they cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class FolderMembers:
    """The files below a folder."""

    path: Path

    def names(self) -> list[str]:
        """Relative paths, sorted; hidden files are left out."""
        return files_below(self.path)

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises `UnreadableError` if they cannot be read."""
        return File(self.path / name).read()


@dataclasses.dataclass(frozen=True)
class ZipMembers:
    """The files in a zip archive.

    Attributes:
        path: The archive.
        archive: The opened archive.
        files: Entries by name.
    """

    path: Path
    archive: zipfile.ZipFile
    files: Mapping[str, zipfile.ZipInfo]

    def names(self) -> list[str]:
        """Relative paths, sorted."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """The bytes of a member; raises `UnreadableError` if they are damaged."""
        try:
            return self.archive.read(self.files[name])
        except Exception as error:  # zlib, zipfile, lzma and the file system raise several types
            raise _damaged(self.path, f"member {name!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class TarMembers:
    """The files in a tar archive.

    Attributes:
        path: The archive.
        files: Where the bytes of each member lie, by name.
    """

    path: Path
    files: Mapping[str, "TarFile"]

    def names(self) -> list[str]:
        """Relative paths, sorted."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """The bytes of a member; raises `UnreadableError` if they cannot be read."""
        return self.files[name].read(self.path)


class TarFile(NamedTuple):
    """Where a file lies in a tar archive that is not compressed.

    Attributes:
        name: Relative path.
        offset: Where its bytes begin, in bytes.
        size: Number of its bytes.
    """

    name: str
    offset: int
    size: int

    def read(self, archive: Path) -> bytes:
        """The file's bytes; raises `UnreadableError` if they cannot be read."""
        try:
            with archive.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise _damaged(archive, f"member {self.name!r}: {error.strerror or error}") from error


def open_members(path: Path) -> Members:
    """Opens a folder, a zip archive or a tar archive that is not compressed.

    Raises:
        UnreadableError: The archive is missing, damaged, cut short or of another kind.
        InputError: A member is unsafe, encrypted, or there twice.
    """
    if path.is_dir():
        return FolderMembers(path)
    if path.suffix.lower() == ".zip":
        return _open_zip(path)
    files: dict[str, TarFile] = {}
    for file in tar_files(path):
        _refuse_repeated(path, file.name, files)
        files[file.name] = file
    return TarMembers(path, files)


def opened_members(path: Path) -> Members:
    """As `open_members`; an archive that this process has opened and that has not changed is not opened again."""
    if path.is_dir():
        return FolderMembers(path)
    try:
        now = path.stat()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    # A forked process would share the position in the file with its parent.
    return _opened(path, now.st_mtime_ns, now.st_size, os.getpid())


@functools.lru_cache(maxsize=4)
def _opened(path: Path, mtime_ns: int, size: int, pid: int) -> Members:
    return open_members(path)


def member_path(path: Path, name: str) -> str:
    """What messages call a member: its path in a folder, "ARCHIVE: MEMBER" in an archive."""
    return str(path / name) if path.is_dir() else f"{path}: {name}"


def tar_files(path: Path) -> Iterator[TarFile]:
    """Yields the files of a tar archive that is not compressed, in order.

    All that is whole is yielded before a fault is raised.

    Raises:
        UnreadableError: The archive is missing, damaged, cut short or compressed.
        InputError: A member is unsafe.
    """
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = safe_name(path, member.name)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise _unsafe(path, member.name, "is a link or a special file")
                if member.offset_data + member.size > length:
                    raise _damaged(path, f"cut short within member {member.name!r}")
                yield TarFile(name, member.offset_data, member.size)
            end = archive.offset
        with path.open("rb") as stream:  # tarfile takes damage after the first member for the end
            stream.seek(end)
            if stream.read(_BLOCK) != bytes(_BLOCK):
                raise _damaged(path, f"no member and no end of the archive at byte {end}")
    except (OSError, tarfile.TarError) as error:
        raise _damaged(path, str(error)) from error


def safe_name(archive: Path, name: str) -> str:
    """The normal form of a member's name; raises `InputError` if it could leave the folder it is extracted to."""
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or PureWindowsPath(name).drive:
        raise _unsafe(archive, name, "lies outside of the folder it is extracted to")
    return str(PurePosixPath(name))


def _open_zip(path: Path) -> ZipMembers:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    files: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = safe_name(path, member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
        if member.is_dir():
            continue
        if kind not in (0, stat.S_IFREG):
            raise _unsafe(path, member.filename, "is a link or a special file")
        if member.flag_bits & 1:
            raise InputError(f"{path}: member {name!r} is encrypted; pack the archive again without a password")
        _refuse_repeated(path, name, files)
        files[name] = member
    return ZipMembers(path, archive, files)


def _refuse_repeated(path: Path, name: str, files: Mapping[str, object]) -> None:
    if name in files:
        raise InputError(f"{path}: member {name!r} is there twice; get the archive again from its source")


def _unsafe(path: Path, name: str, fault: str) -> InputError:
    return InputError(f"{path}: member {name!r} {fault}; do not use this archive, get it again from its source")


def _damaged(path: Path, fault: str) -> UnreadableError:
    return UnreadableError(f"{path}: is damaged or no archive ({fault}); get it again from its source")
