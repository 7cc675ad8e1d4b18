"""Where builders get archives from: --manual_dir, or a download whose checksum is known."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from data_pipelines.errors import InputError


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


def locate(archive: Archive, dl_manager: Any, checksums: Mapping[str, Any] | None) -> Path:
    """Finds an archive in --manual_dir, verified; or the folder it was extracted to, as it is; or downloads it.

    Args:
        archive: What to look for.
        dl_manager: TensorFlow Datasets' download manager.
        checksums: Size and checksum by address, from the builder's checksums.tsv.

    Returns:
        The archive's file or the folder.

    Raises:
        InputError: It has another checksum, cannot be downloaded, or is not there and no checksum is known.
    """
    info = (checksums or {}).get(archive.source)
    folder = manual_dir(dl_manager)
    if folder is not None:
        for name in archive.names:
            if (path := folder / name).is_file():
                if info is not None:
                    verify(path, info.checksum, int(info.size), archive.source)
                return path
        if (path := folder / archive.folder).is_dir():
            return path
    wanted = " or ".join((*archive.names, f"the folder {archive.folder}"))
    if info is None:
        raise InputError(
            f"{wanted}: not found in --manual_dir={folder or ''}; no checksum of it is known, so it is not downloaded: "
            f"get it from {archive.source} and put it there"
        )
    try:
        return Path(dl_manager.download(archive.source))
    except NonMatchingChecksumError as error:
        raise InputError(f"{error}\nDownload it again; or put {wanted} into --manual_dir") from error
    except Exception as error:  # whatever the network and the download manager raise
        raise InputError(
            f"{archive.source}: cannot be downloaded ({error}); put {wanted} into --manual_dir={folder or ''}"
        ) from error


def manual_dir(dl_manager: Any) -> Path | None:
    """The folder --manual_dir; None if it is missing or empty."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:
        return None


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
