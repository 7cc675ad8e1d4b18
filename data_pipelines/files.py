"""Files that are there whole or not at all."""

import contextlib
import time
import uuid
from pathlib import Path

from data_pipelines.errors import InputError

_ABANDONED_SECONDS = 600.0  # nobody takes as long between two writes to a part


def part_path(path: Path) -> Path:
    """Where a file is written before it is whole; processes on several machines may write the same file at a time."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


def remove_abandoned_parts(folder: Path) -> None:
    """Removes, below a folder, the parts that killed processes left, ten minutes after: others may be at work."""
    for part in folder.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # its process renamed it meanwhile
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                part.unlink()


def replace_file(path: Path, content: str | bytes, *, mend: str = "choose a folder you may write to") -> None:
    """Writes a file, and its folder, under another name, then renames it: readers never see a part of it.

    Args:
        path: The file.
        content: Text, written as UTF-8, or bytes.
        mend: What to do if it cannot be written and there is room.

    Raises:
        InputError: The file cannot be written.
    """
    part = part_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise write_fault(path, error, mend) from error


def write_fault(path: Path, error: OSError, mend: str = "choose a folder you may write to") -> InputError:
    """What to raise for a file that cannot be written."""
    return InputError(f"{path}: cannot be written ({error.strerror or error}); make room or {mend}")
