"""The work directory of a run."""

import tempfile
from pathlib import Path

from data_pipelines.errors import InputError


def check_workdir(path: str | Path) -> Path:
    """Creates the work directory and checks that it is writable.

    Raises:
      InputError: the folder cannot be created or written.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--workdir={path}: cannot be written ({reason}); choose a folder you may write to") from error
    return folder
