"""Finds the archives of builders: in --manual_dir, or by a download with a known checksum."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from data_pipelines.errors import InputError
from data_pipelines.sources.folders import files_below
from data_pipelines.sources.records import UnreadableError


@dataclasses.dataclass(frozen=True)
class Archive:
    """An archive that a builder reads.

    Attributes:
        names: Possible names of its file in --manual_dir; the first is the usual one.
        source: Its URL or, if no checksum is known, a text on where to get it.
        folder: Name of its extracted folder below --manual_dir, which can be used instead.
    """

    names: tuple[str, ...]
    source: str
    folder: str


def locate(archives: Sequence[Archive], dl_manager: Any, checksums: Mapping[str, Any] | None) -> Path:
    """Finds an archive or its extracted folder in --manual_dir, or downloads the archive.

    Archives with a known checksum are verified, folders are not.

    Args:
        archives: The alternatives; the first that is found is used.
        dl_manager: TensorFlow Datasets' download manager.
        checksums: Size and checksum by URL, from the builder's checksums.tsv.

    Returns:
        Path of the archive or the folder.

    Raises:
        InputError: The checksum differs, the download fails, or the archive is missing and has no known checksum.
    """
    checksums = checksums or {}
    manual = manual_dir(dl_manager)
    archive, path = _choose(archives, manual, checksums)
    info = checksums.get(archive.source)
    if path is not None:
        if info is not None and path.is_file():
            verify(path, info.checksum, int(info.size), archive.source)
        return path
    names = [*(name for choice in archives for name in choice.names), f"the folder {archive.folder}"]
    wanted = " or ".join(names)
    place = "--manual_dir (not given, or empty)" if manual is None else f"--manual_dir={manual}"
    if info is None:
        raise InputError(
            f"{wanted}: not found in {place}; no checksum of it is known, so it is not downloaded: get it from "
            f"{archive.source} and put it there"
        )
    try:
        return Path(dl_manager.download(archive.source))
    except NonMatchingChecksumError as error:
        facts = " ".join(str(error).partition("\nTo debug")[0].split())
        raise InputError(f"{facts}; download it again, or put {wanted} into {place}") from error
    except Exception as error:  # the network and the download manager raise several types
        raise InputError(f"{archive.source}: cannot be downloaded ({error}); put {wanted} into {place}") from error


def origin(archives: Sequence[Archive], dl_manager: Any, checksums: Mapping[str, Any] | None) -> str | None:
    """Describes the archive that `locate` would use, without reading it; None if it would find none.

    Descriptions of different archives differ. With a known checksum, the path of the archive does not matter.
    """
    checksums = checksums or {}
    archive, path = _choose(archives, manual_dir(dl_manager), checksums)
    info = checksums.get(archive.source)
    if info is not None and (path is None or path.is_file()):
        return f"{archive.source} (sha256 {info.checksum})"
    return None if path is None else describe(path, files_in(path))


def describe(source: Path | str, files: Iterable[Path]) -> str:
    """Describes the files of a source by a text that changes if a path or a size changes.

    Args:
        source: Name of the source in the text.
        files: The files, in a fixed order.

    Raises:
        UnreadableError: A file is missing.
    """
    digest, count, total = hashlib.sha256(), 0, 0
    for file in files:
        try:
            size = file.stat().st_size
        except OSError as error:
            raise UnreadableError(f"{file}: cannot be read ({error.strerror or error})") from error
        digest.update(os.fsencode(file) + f"\0{size}\0".encode())
        count += 1
        total += size
    return f"{source} ({count:,} files, {total:,} bytes, paths and sizes {digest.hexdigest()[:16]})"


def files_in(path: Path) -> Iterator[Path]:
    """A file itself, or all files below a folder, sorted, without hidden ones."""
    return (path / name for name in files_below(path)) if path.is_dir() else iter((path,))


def _choose(
    archives: Sequence[Archive], manual: Path | None, checksums: Mapping[str, Any]
) -> tuple[Archive, Path | None]:
    """The first archive in `manual`, and its path; otherwise the first that can be downloaded, and None."""
    if manual is not None:
        for archive in archives:
            found = [path for name in archive.names if (path := manual / name).is_file()]
            if (folder := manual / archive.folder).is_dir():
                found.append(folder)
            if found:
                return archive, found[0].absolute()
    return next((archive for archive in archives if archive.source in checksums), archives[0]), None


def manual_dir(dl_manager: Any) -> Path | None:
    """The folder --manual_dir; None if it is missing or empty."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:
        return None


def download_config(manual: Path | None = None) -> tfds.download.DownloadConfig:
    """The download settings of builders: only from the source, verified. `manual` is --manual_dir."""
    return tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False, force_checksums_validation=True)


def verify(path: Path, sha256: str, size: int, source: str) -> None:
    """Checks that a file has the expected sha256.

    Args:
        path: The file.
        sha256: Its expected checksum, in hexadecimal digits.
        size: Its expected length in bytes, for the message.
        source: Where to get it again, for the message.

    Raises:
        InputError: The checksum differs.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: wrong checksum: expected sha256 {sha256} ({size:,} bytes), found {found} "
            f"({path.stat().st_size:,} bytes); remove the file and get it again from {source}"
        )
