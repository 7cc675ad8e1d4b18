"""Downloads a file: resumed where the server allows it, verified, and renamed only when it is whole."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pooch

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import file_sha256
from semiovs_jax.weights.published import is_url

_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**18  # bytes
_OK, _PARTIAL, _BAD_RANGE = 200, 206, 416  # status codes of HTTP


def download(address: str, path: Path, sha256: str | None, *, page: str) -> str:
    """Downloads or copies a file, unless it is there.

    The bytes so far are in PATH.part. They are used again if the server still has the same file (its strong ETag, in
    PATH.etag, is the same) and sends parts of files.

    Args:
      address: a URL, or the path of a file to copy.
      path: the file to write.
      sha256: its hex SHA-256, or the first digits of it; None if unknown: then nothing is checked.
      page: for messages: a page about the file.

    Returns:
      Its hex SHA-256.

    Raises:
      InputError: the file cannot be downloaded or written, or has another SHA-256. A download of another one is
        deleted; a file that was there is left.
    """
    there = f"remove it, or choose another folder with --out; see {page}"
    if path.exists():
        return _check(path, sha256, there)
    part, etag = path.with_name(f"{path.name}.part"), _etag(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if path.exists():  # another process had the lock until now; `file` may be what it has renamed
                return _check(path, sha256, there)
            if is_url(address):
                _receive(address, file, path, page)
            else:
                _copy(Path(address), file)
            try:
                found = _check(part, sha256, f"it is deleted; run the same command again, or see {page}", address)
            except InputError:
                part.unlink()
                etag.unlink(missing_ok=True)
                raise
            part.replace(path)
            etag.unlink(missing_ok=True)
    except OSError as error:  # those of the disk and of requests
        raise InputError(
            f"{address}: cannot be downloaded to {path} ({error}); what has arrived is kept: run the same command "
            f"again, or get the file with a browser (see {page}) and save it as {path}"
        ) from error
    return found


def _etag(path: Path) -> Path:
    return path.with_name(f"{path.name}.etag")


def _check(path: Path, sha256: str | None, remedy: str, name: str = "") -> str:
    found = file_sha256(path)
    if not found.startswith(sha256 or ""):
        begins = "" if len(sha256 or "") == len(found) else "a beginning with "
        raise InputError(f"{name or path}: sha256 is {found}, expected {begins}{sha256}; {remedy}")
    return found


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part}: another process downloads this file; wait for its end") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield file
        finally:
            if not os.fstat(file.fileno()).st_size:
                part.unlink(missing_ok=True)


def _copy(source: Path, file: BinaryIO) -> None:
    file.truncate(0)
    with source.open("rb") as original:
        shutil.copyfileobj(original, file)
    file.flush()


def _receive(url: str, file: BinaryIO, path: Path, page: str) -> None:
    etag = _etag(path)
    start = file.seek(0, os.SEEK_END)
    if start and not etag.exists():
        start = 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag.read_text(encoding="latin-1")}
    status = 0

    def on_response(response: Any, *_: Any, **__: Any) -> None:
        nonlocal status
        status = response.status_code
        if status in (_OK, _PARTIAL) and response.headers.get("Content-Type", "").startswith("text/html"):
            raise InputError(
                f"{url}: the server sent a web page, not the file; get the file with a browser (see {page}) and save "
                f"it as {path}"
            )
        if status == _PARTIAL and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError(f"the server sent other bytes than those from {start}")
        if status == _OK:
            file.truncate(0)
            etag.unlink(missing_ok=True)
            if (tag := response.headers.get("ETag", "")).startswith('"'):  # weak ones do not identify bytes
                etag.write_text(tag, encoding="latin-1")

    receive = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=_CHUNK,
        headers=headers,
        timeout=_TIMEOUT,
        hooks={"response": on_response},
    )
    try:
        receive(url, file, None)
    except OSError:
        if status != _BAD_RANGE or not start:
            raise
        etag.unlink()  # the part is as long as the file, or longer
        _receive(url, file, path, page)
