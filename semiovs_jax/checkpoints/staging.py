"""Checkpoints on S3, which Orbax neither writes nor reads: they pass through a folder of this machine.

Their objects are those that Orbax writes to Google Cloud Storage; the marker of a whole checkpoint is the last one.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.files import as_path
from data_pipelines.temporary import temporary_folder


def is_staged(path: epath.PathLike) -> bool:
    """Whether checkpoints of this path pass through a folder of this machine."""
    return str(path).startswith("s3:/")


@contextlib.contextmanager
def readable_item(step_dir: epath.Path, item: str) -> Iterator[epath.Path]:
    """Yields the directory of an item, or a copy of it that is removed afterwards, for Orbax to read."""
    if not is_staged(step_dir):
        yield step_dir / item
        return
    source: Any = as_path(str(step_dir / item), "checkpoint")
    with temporary_folder() as folder:
        for name in source.files():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            (source / name).download(file)
        yield epath.Path(folder)


def upload_checkpoint(folder: epath.Path, step_dir: epath.Path, marker: str) -> None:
    """Uploads all files of a checkpoint, the marker last; what was there is removed.

    Raises:
      OSError: the server refuses, or cannot be reached.
    """
    target: Any = as_path(str(step_dir), "checkpoint")
    target.rmtree()
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        (target / file.relative_to(folder).as_posix()).upload(file)
    (target / marker).write_text(f"Checkpoint commit was successful to {step_dir}")


def remove_checkpoint(step_dir: epath.Path, marker: str) -> None:
    """Removes a checkpoint, the marker first: a process that is killed here leaves no damaged one.

    Raises:
      OSError: the server refuses, or cannot be reached.
    """
    target: Any = as_path(str(step_dir), "checkpoint")
    (target / marker).unlink(missing_ok=True)
    target.rmtree()
