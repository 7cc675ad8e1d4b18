"""Atomic file writes: a file exists completely or not at all."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import InputError

_ABANDONED_SECONDS = 600.0  # older partial files belong to dead writers


@contextlib.contextmanager
def whole_file(path: Path, *, mend: str = "choose a folder you may write to") -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` at the end: readers never see a partial file.

    Processes on several machines may write the same file at once. The folder is created if missing.

    Args:
        path: The file.
        mend: What to do if the file cannot be written although the disk has room.

    Raises:
        InputError: The file cannot be written.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room or {mend}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def replace_file(path: Path, content: str | bytes, **options: str) -> None:
    """Writes bytes, or text as UTF-8, atomically. Takes the options of `whole_file` and raises its errors."""
    with whole_file(path, **options) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_abandoned_parts(folder: Path) -> None:
    """Removes the partial files of killed processes below a folder, if they are older than ten minutes."""
    for part in folder.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # its process renamed it meanwhile
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                part.unlink()
