"""Files that are there whole or not at all."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.errors import InputError

_ABANDONED_SECONDS = 600.0  # nobody takes as long between two writes to a part


@contextlib.contextmanager
def whole_file(path: Path, *, mend: str = "choose a folder you may write to") -> Iterator[Path]:
    """Gives another name to write a file under, and renames it in the end: readers never see a part of it.

    Processes on several machines may write the same file at a time. The file's folder is made.

    Args:
        path: The file.
        mend: What to do if it cannot be written and there is room.

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
    """Writes text, as UTF-8, or bytes as `whole_file` does; raises what it raises."""
    with whole_file(path, **options) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_abandoned_parts(folder: Path) -> None:
    """Removes, below a folder, the parts that killed processes left, ten minutes after: others may be at work."""
    for part in folder.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # its process renamed it meanwhile
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                part.unlink()
