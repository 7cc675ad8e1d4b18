"""The work directory of a run: its path, and whether it can be written."""

import secrets
import tempfile
from pathlib import Path

from data_pipelines.errors import InputError
from data_pipelines.files import as_path, is_remote

_GLOB = "[]\\"  # in Orbax's search for the files of a checkpoint, the other characters stand for themselves


def workdir_path(path: str | Path, field: str = "--workdir") -> Path:
    """The absolute path of a folder of checkpoints.

    Args:
      path: the folder; `~` is expanded. Or a URL, see `as_path`.
      field: the name of the path in error messages.

    Raises:
      InputError: as `as_path`, or Orbax could save checkpoints below it, but not find them again.
    """
    folder = as_path(path, field).absolute()
    if found := [character for character in _GLOB if character in str(folder)]:
        raise InputError(
            f"{field}={path}: checkpoints below a path with {' or '.join(found)} cannot be restored ({folder}); "
            f"choose a path without {' '.join(_GLOB)}"
        )
    return folder


def check_workdir(path: str | Path) -> Path:
    """Creates the work directory and checks that it is writable.

    Returns:
      The absolute path.

    Raises:
      InputError: as `workdir_path`, or the folder cannot be created or written.
    """
    return check_writable(workdir_path(path), "--workdir")


def check_writable(folder: Path, field: str) -> Path:
    """Creates a folder and checks that it is writable.

    Args:
      folder: the folder, which is returned.
      field: the name of its path in error messages.

    Raises:
      InputError: the folder cannot be created or written.
    """
    try:
        if is_remote(folder):
            probe = folder / f".writable-{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{field}={folder}: cannot be written ({reason}); choose a folder you may write to") from error
    return folder
