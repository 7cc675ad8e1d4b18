"""The work directory of a run: its path, and whether the hosts of a run share it."""

import contextlib
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError
from data_pipelines.files import local_path

_GLOB = "[]\\"  # in Orbax's search for the files of a checkpoint, the other characters stand for themselves
_SEEN_WITHIN = 5.0  # seconds until a file of one host must be visible on another


def workdir_path(path: str | Path, field: str = "--workdir") -> Path:
    """The absolute path of a folder of checkpoints.

    Args:
      path: the folder; `~` is expanded.
      field: the name of the path in error messages.

    Raises:
      InputError: the path is a URL, or Orbax could save checkpoints below it, but not find them again.
    """
    folder = local_path(path, field).absolute()
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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{field}={folder}: cannot be written ({reason}); choose a folder you may write to") from error
    return folder


def check_shared(folders: Mapping[str, Path]) -> None:
    """Checks that all processes see the same folders: process 0 writes a file that the others must find.

    Every process must call this with the same names. With one process, it does nothing.

    Args:
      folders: folders by their name in error messages; process 0 creates those that are missing.

    Raises:
      InputError: raised on all processes, with all folders that a process does not share or that cannot be written.
    """
    if jax.process_count() == 1 or not folders:
        return
    token = multihost_utils.broadcast_one_to_all(np.frombuffer(secrets.token_bytes(8), np.uint8))
    files = [folder / f".shared-{bytes(token).hex()}" for folder in folders.values()]
    written = _broadcast([_write(file) for file in files] if jax.process_index() == 0 else [True] * len(files))
    found = multihost_utils.process_allgather(np.array([_appears(file) for file in files]))  # [processes, folders]
    if jax.process_index() == 0:
        for file in files:
            file.unlink(missing_ok=True)
    faults = []
    for index, (name, folder) in enumerate(folders.items()):
        if not written[index]:
            faults.append(f"{name}={folder}: process 0 cannot write there; choose a folder that it may write to")
        elif missing := np.flatnonzero(~found[:, index]).tolist():
            faults.append(
                f"{name}={folder}: process 0 wrote a file there that process(es) {', '.join(map(str, missing))} cannot "
                f"see; choose a folder on storage that all hosts share, mounted at the same path"
            )
    if faults:
        raise InputError(*faults)


def _broadcast(values: list[bool]) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(np.array(values)))


def _write(file: Path) -> bool:
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return True
    return False


def _appears(file: Path) -> bool:
    """Whether the file is there; network file systems may show it late."""
    last = time.monotonic() + _SEEN_WITHIN
    while not (there := file.exists()) and time.monotonic() < last:
        time.sleep(0.1)
    return there
