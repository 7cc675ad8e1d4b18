"""The files that describe a folder of cached OVS labels: its manifest, and the pixels per class of each image."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.files import local_path, replace_file

MANIFEST = "manifest.json"
FILES, SHARDS = "files", "shards"  # forms of the labels
LABEL_AGAIN = "remove the folder to label again, or set config.ovs.labels_dir to another one"
RUN_LABEL = "run `python -m semiovs_jax.label --config=...`"

_CLASS_PIXELS = "class_pixels.npz"


def labels_folder(labels_dir: str) -> Path:
    """The folder that `config.ovs.labels_dir` names; raises `InputError` if it is a URL."""
    return local_path(labels_dir, "config.ovs.labels_dir")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest; None if the file is missing. Raises `InputError` if it cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {LABEL_AGAIN}") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: cannot be read (not a JSON object); {LABEL_AGAIN}")
    return manifest


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
        with np.load(path, allow_pickle=False) as content:
            return ClassPixels(tuple(content["ids"].tolist()), content["pixels"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {RUN_LABEL}, which counts the pixels of existing labels") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); {RUN_LABEL}, which counts the pixels again") from error


def write_class_pixels(folder: Path, ids: Sequence[str], pixels: np.ndarray) -> None:
    """Writes the pixels per class of each image, int32 [len(ids), num_classes + 1]."""
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array(ids, np.str_), pixels=pixels.astype(np.int32))
    write_whole(folder / _CLASS_PIXELS, buffer.getvalue())


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file of a folder of labels atomically; raises `InputError` if it cannot be written."""
    replace_file(path, content, remedy="set config.ovs.labels_dir to a folder you may write to")
