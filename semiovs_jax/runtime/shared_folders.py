"""Checks that the hosts of a run share its folders."""

import contextlib
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError

_SEEN_WITHIN = 5.0  # seconds until a file of one host must be visible on another


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
