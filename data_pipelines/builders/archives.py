"""Reads the files in a zip or tar archive, or in the folder it was extracted to.

Members are read directly from the archive: nothing is written to disk. The whole archive is refused if extracting a
member could write outside of the folder: an absolute path, "..", a link or a device.
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
_MOST_BYTES = 1 << 27  # of a member: a few kilobytes of a zip archive may hold any number of zeros


class Members(Protocol):
    """Named files that can be read in any order."""

    @property
    def path(self) -> Path:
        """The archive or folder, for error messages."""
        ...

    def names(self) -> list[str]:
        """Sorted relative paths, with "/" between folders."""
        ...

    def read(self, name: str) -> bytes:
        """Reads the bytes of one of `names`; raises `UnreadableError` if that fails."""
        ...


@dataclasses.dataclass(frozen=True)
class FolderMembers:
    """The files below a folder."""

    path: Path

    def names(self) -> list[str]:
        """Sorted relative paths, without hidden files."""
        return files_below(self.path)

    def read(self, name: str) -> bytes:
        """Reads the bytes of a file; raises `UnreadableError` if that fails."""
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
        """Sorted relative paths."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """Reads the bytes of a member; raises `UnreadableError` if they are damaged or too many."""
        member = self.files[name]
        _refuse_large(self.path, name, member.file_size)
        try:
            with self.archive.open(member) as stream:
                return stream.read(member.file_size + 1)  # checks the CRC; without a limit, the length may be a lie
        except Exception as error:  # zlib, zipfile, lzma and the file system raise several types
            raise _damaged(self.path, f"member {name!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class TarMembers:
    """The files in a tar archive.

    Attributes:
        path: The archive.
        files: The position of each member in the archive, by name.
    """

    path: Path
    files: Mapping[str, "TarFile"]

    def names(self) -> list[str]:
        """Sorted relative paths."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """Reads the bytes of a member; raises `UnreadableError` if that fails."""
        return self.files[name].read(self.path)


class TarFile(NamedTuple):
    """The position of a file in an uncompressed tar archive.

    Attributes:
        name: Relative path.
        offset: Position of its first byte.
        size: Number of its bytes.
    """

    name: str
    offset: int
    size: int

    def read(self, archive: Path) -> bytes:
        """Reads the bytes of the file; raises `UnreadableError` if that fails or they are too many."""
        _refuse_large(archive, self.name, self.size)
        try:
            with archive.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise _damaged(archive, f"member {self.name!r}: {error.strerror or error}") from error


def open_members(path: Path) -> Members:
    """Opens a folder, a zip archive or an uncompressed tar archive.

    Raises:
        UnreadableError: The archive is missing, damaged, truncated or of another kind.
        InputError: A member is unsafe, encrypted, repeated or not compressed by deflate.
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
    """Like `open_members`, but a process opens an unchanged archive only once."""
    if path.is_dir():
        return FolderMembers(path)
    try:
        now = path.stat()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    # With the process id: a forked process would share the file position with its parent.
    return _opened(path, now.st_mtime_ns, now.st_size, os.getpid())


@functools.lru_cache(maxsize=4)
def _opened(path: Path, mtime_ns: int, size: int, pid: int) -> Members:
    return open_members(path)


def member_path(path: Path, name: str) -> str:
    """The name of a member in messages: its path in a folder, "ARCHIVE: MEMBER" in an archive."""
    return str(path / name) if path.is_dir() else f"{path}: {name}"


def tar_files(path: Path) -> Iterator[TarFile]:
    """Yields the files of an uncompressed tar archive, in order.

    All complete files are yielded before an error is raised.

    Raises:
        UnreadableError: The archive is missing, damaged, truncated or compressed.
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
                if member.size < 0 or member.offset_data + member.size > length:
                    raise _damaged(path, f"truncated within member {member.name!r}")
                yield TarFile(name, member.offset_data, member.size)
            end = archive.offset
        with path.open("rb") as stream:  # tarfile takes damage after the first member as the end
            stream.seek(end)
            if stream.read(_BLOCK) != bytes(_BLOCK):
                raise _damaged(path, f"neither a member nor the end of the archive at byte {end}")
    except InputError:
        raise
    except Exception as error:  # tarfile raises several types for damaged headers
        raise _damaged(path, str(error)) from error


def safe_name(archive: Path, name: str) -> str:
    """Normalizes the name of a member; raises `InputError` if it leads out of the folder it is extracted to."""
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or PureWindowsPath(name).drive:
        raise _unsafe(archive, name, "leads out of the folder it is extracted to")
    return str(PurePosixPath(name))


def _open_zip(path: Path) -> ZipMembers:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises several types for damaged directories
        raise _damaged(path, str(error)) from error
    files: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = safe_name(path, member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if the archive was not made on Unix
        if member.is_dir():
            continue
        if kind not in (0, stat.S_IFREG):
            raise _unsafe(path, member.filename, "is a link or a special file")
        if member.flag_bits & 1:
            raise InputError(f"{path}: member {name!r} is encrypted; pack the archive again without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without a limit
            raise InputError(
                f"{path}: member {name!r} is compressed in another way than deflate; pack the archive again with zip"
            )
        _refuse_repeated(path, name, files)
        files[name] = member
    return ZipMembers(path, archive, files)


def _refuse_repeated(path: Path, name: str, files: Mapping[str, object]) -> None:
    if name in files:
        raise InputError(f"{path}: member {name!r} is repeated; get the archive again from its source")


def _refuse_large(path: Path, name: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise UnreadableError(f"{path}: member {name!r} claims {size:,} bytes, at most {_MOST_BYTES:,} are read")


def _unsafe(path: Path, name: str, fault: str) -> InputError:
    return InputError(f"{path}: member {name!r} {fault}; do not use this archive, get it again from its source")


def _damaged(path: Path, fault: str) -> UnreadableError:
    return UnreadableError(f"{path}: is damaged or not an archive ({fault}); get it again from its source")
