"""The files that describe a folder of cached OVS labels: its manifest, and the pixels per class of each image."""

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.files import as_path, read_json, replace_file

MANIFEST = "manifest.json"
FILES, SHARDS = "files", "shards"  # forms of the labels
LABEL_AGAIN = "remove the folder to label again, or set config.ovs.labels_dir to another one"
RUN_LABEL = "run `python -m semiovs_jax.label --config=...`"

_CLASS_PIXELS = "class_pixels.npz"
_TYPES = {"finished": bool, "form": str, "counts": dict, "bad": dict, "pixels": dict, SHARDS: dict}
_MOST_SHARDS = 100_000


def labels_folder(labels_dir: str) -> Path:
    """The folder that `config.ovs.labels_dir` names; raises `InputError` as `as_path`."""
    return as_path(labels_dir, "config.ovs.labels_dir")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest; None if the file is missing. Raises `InputError` if it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {LABEL_AGAIN}") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: cannot be read (not a JSON object); {LABEL_AGAIN}")
    if invalid := _invalid_fields(manifest):
        raise InputError(f"{path}: cannot be read (invalid: {', '.join(invalid)}); {LABEL_AGAIN}")
    return manifest


def _invalid_fields(manifest: dict[str, Any]) -> list[str]:
    """The fields of a manifest that are missing or have a wrong type or value."""
    present = manifest.keys() | {"finished"}
    invalid = [key for key, kind in _TYPES.items() if key in present and not isinstance(manifest.get(key), kind)]
    if manifest.get("form", FILES) not in (FILES, SHARDS):
        invalid.append("form")
    if manifest.get("form") == SHARDS and manifest.get("finished"):
        match manifest.get(SHARDS):
            case {"name": str(), "count": int(count)} if 0 <= count <= _MOST_SHARDS:
                pass
            case _:
                invalid.append(SHARDS)
    return list(dict.fromkeys(invalid))


def unlisted_content(folder: Path) -> str | None:
    """The fault of a folder that has no manifest but holds labels or a dataset; None if there is no fault."""
    if (folder / MANIFEST).exists():
        return None
    if any((folder / "labels").rglob("*.png")):
        return (
            f"{folder}: holds labels without {MANIFEST}; if another tool made them, set config.ovs.labels='external'; "
            f"else {LABEL_AGAIN}"
        )
    if any(any(folder.glob(pattern)) for pattern in ("dataset_info.json", "*/dataset_info.json")):
        return f"{folder}: holds a dataset without {MANIFEST}; {LABEL_AGAIN}"
    return None


class ClassPixels(NamedTuple):
    """Pixels per class of each image of a finished folder.

    Attributes:
        ids: The labeled images, in the order of the OOD set, without the bad images.
        pixels: int32 [len(ids), num_classes + 1]; the last column counts pixels without a class.
    """

    ids: tuple[str, ...]
    pixels: np.ndarray


def read_class_pixels(folder: Path) -> ClassPixels:
    """Reads the file that `write_class_pixels` writes. Reads no labels.

    Raises:
        InputError: The file is damaged, or missing: the labels are not finished, or an older version finished them.
    """
    path = folder / _CLASS_PIXELS
    try:
        return ClassPixels(*read_table(path, "pixels"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {RUN_LABEL}, which counts the pixels of existing labels") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {RUN_LABEL}, which counts the pixels again") from error


def write_class_pixels(folder: Path, ids: Sequence[str], pixels: np.ndarray) -> None:
    """Writes the pixels per class of each image, int32 [len(ids), num_classes + 1]."""
    write_table(folder / _CLASS_PIXELS, ids, pixels=pixels.astype(np.int32))


def read_table(path: Path, column: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads a file that `write_table` writes; raises OSError, or ValueError if it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            ids, rows = content["ids"], content[column]
    except (KeyError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error
    if (ids.ndim, rows.ndim, len(ids)) != (1, 2, len(rows)) or (ids.dtype.kind, rows.dtype.kind) != ("U", "i"):
        raise ValueError(f"ids {ids.dtype}{list(ids.shape)} and {column} {rows.dtype}{list(rows.shape)}")
    return tuple(ids.tolist()), rows


def write_table(path: Path, ids: Sequence[str], **column: np.ndarray) -> None:
    """Writes one row of integers for each id, int [len(ids), N], as .npz."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"ids": np.array(ids, np.str_), **column}
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file of a folder of labels atomically; raises `InputError` if it cannot be written."""
    replace_file(path, content, remedy="set config.ovs.labels_dir to a folder you may write to")
