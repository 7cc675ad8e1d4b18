"""Weight files: safetensors of arrays by "/" path, with provenance and a checksum in the metadata."""

import contextlib
import hashlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from data_pipelines.files import as_path, local_file, whole_file


def tensors_sha256(flat: Mapping[str, Any]) -> str:
    """Hex SHA-256 of names, types, shapes and bytes; the order of the mapping does not matter."""
    digest = hashlib.sha256()
    for name in sorted(flat):
        array = np.ascontiguousarray(flat[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with local_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(path: str | Path, flat: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes arrays by "/" path as safetensors, atomically.

    Args:
      path: File to write. Missing folders are created.
      flat: Arrays by "/" path, as `keys.flatten` returns them.
      metadata: Provenance: at least `kind`, `source` and `source_sha256` for converted weights. `sha256`, the digest
        of the tensors, is added.

    Raises:
      InputError: The file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in flat.items()}
    with whole_file(as_path(path, "--out")) as part:
        mode = stat.S_IMODE(part.stat().st_mode)
        try:
            save_file(arrays, part, metadata={**metadata, "sha256": tensors_sha256(arrays)})
        except SafetensorError as error:  # The disk failed: the arrays are valid.
            raise OSError(str(error)) from error
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)  # safetensors has replaced the file by one that its owner alone may read


def load_weights(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file that `save_weights` wrote.

    Returns:
      Arrays by "/" path, and the metadata.

    Raises:
      InputError: The file is missing, is not safetensors, was not written by `save_weights`, or its tensors do not
        have the digest in the metadata.
    """
    arrays, metadata = read_safetensors(path)
    if "sha256" not in metadata:
        raise InputError(
            f"{path}: not converted weights (no sha256 in its metadata); "
            "make them with `python -m semiovs_jax.convert SOURCE OUT --kind=KIND`"
        )
    if (found := tensors_sha256(arrays)) != metadata["sha256"]:
        raise InputError(
            f"{path}: damaged: the tensors' sha256 is {found}, expected {metadata['sha256']} (metadata); "
            "copy or convert the file again"
        )
    return arrays, metadata


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads arrays and metadata of any safetensors file.

    Raises:
      InputError: The file is missing or is not safetensors, or a tensor has a type that numpy lacks.
    """
    with _opened(path) as file:
        return {name: _tensor(path, file, name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_metadata(path: str | Path) -> dict[str, str]:
    """Reads the metadata of any safetensors file, but no array; raises as `read_safetensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _tensor(path: str | Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: the tensor {name!r} has a type that numpy lacks ({error}); save it as float32"
        ) from error


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not as_path(path, "weights").is_file():
        raise InputError(f"{path}: no such weights file; check the path in the config or on the command line")
    try:
        with safe_open(local_file(path), framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch or convert it again") from error
