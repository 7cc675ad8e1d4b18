"""Where builders get archives from: --manual_dir, or a download whose checksum is known."""

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
        names: Names that its file may have in --manual_dir; the first is the usual one.
        source: Where it is from: an address to download, or a text where no checksum is known.
        folder: What it is extracted to below --manual_dir, which serves as well.
    """

    names: tuple[str, ...]
    source: str
    folder: str


def locate(archives: Sequence[Archive], dl_manager: Any, checksums: Mapping[str, Any] | None) -> Path:
    """Finds an archive in --manual_dir, verified; or the folder it was extracted to, as it is; or downloads it.

    Args:
        archives: Any of them serves; the first that is there is taken.
        dl_manager: TensorFlow Datasets' download manager.
        checksums: Size and checksum by address, from the builder's checksums.tsv.

    Returns:
        The archive's file or the folder.

    Raises:
        InputError: It has another checksum, cannot be downloaded, or is not there and no checksum is known.
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
    except Exception as error:  # whatever the network and the download manager raise
        raise InputError(f"{archive.source}: cannot be downloaded ({error}); put {wanted} into {place}") from error


def origin(archives: Sequence[Archive], dl_manager: Any, checksums: Mapping[str, Any] | None) -> str | None:
    """Says which archive `locate` would take, reading none; None if there is none to take.

    Texts of different archives differ. Where a checksum is known it does not matter where the archive lies.
    """
    checksums = checksums or {}
    archive, path = _choose(archives, manual_dir(dl_manager), checksums)
    info = checksums.get(archive.source)
    if info is not None and (path is None or path.is_file()):
        return f"{archive.source} (sha256 {info.checksum})"
    return None if path is None else describe(path, files_in(path))


def describe(source: Path | str, files: Iterable[Path]) -> str:
    """A text for the files of a source that is another where their paths or sizes are others.

    Args:
        source: What to call them.
        files: In an order that does not change.

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
    """A file itself, or the files below a folder that are not hidden, sorted."""
    return (path / name for name in files_below(path)) if path.is_dir() else iter((path,))


def _choose(
    archives: Sequence[Archive], manual: Path | None, checksums: Mapping[str, Any]
) -> tuple[Archive, Path | None]:
    """The first archive that lies in `manual` and its path; otherwise the first that can be downloaded, and None."""
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
    """How builders download: verified, from the source alone; `manual` is --manual_dir."""
    return tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False, force_checksums_validation=True)


def verify(path: Path, sha256: str, size: int, source: str) -> None:
    """Makes sure that a file is the one expected.

    Args:
        path: The file.
        sha256: Its checksum, in hexadecimal digits.
        size: Its length in bytes.
        source: Where to get it again.

    Raises:
        InputError: It is another; the message says what was expected and found.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            f"{path}: wrong checksum: expected sha256 {sha256} ({size:,} bytes), found {found} "
            f"({path.stat().st_size:,} bytes); remove the file and get it again from {source}"
        )
