"""Takes over OOD labels that another tool has made: checks all, then writes them as `external` labels."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Faults, InputError, first_few
from data_pipelines.images.decode import decode_confidence, decode_label
from data_pipelines.labels.cache import LabeledSource
from data_pipelines.labels.examples import encode_label
from data_pipelines.labels.external import ExternalLabels, external_faults, open_external_labels
from data_pipelines.labels.files import plane_path
from data_pipelines.labels.manifest import MANIFEST, write_whole
from data_pipelines.labels.parallel import map_in_chunks
from data_pipelines.sources.folders import files_below
from data_pipelines.sources.records import Record, Source, record_id

_CERTAIN = 255
_KINDS = ("confidence", "labels")  # in the order of writing: a label is written last


class Imported(NamedTuple):
    """Labels that were taken over.

    Attributes:
        labels: The new labels.
        images: Number of images with a label.
        written: Number of labels that were not there before.
        pixels: int64 [num_classes + 1], pixels per class; the last entry counts the pixels without a class.
    """

    labels: ExternalLabels
    images: int
    written: int
    pixels: np.ndarray


class _Planes(NamedTuple):
    """The new files of an image by path, and its pixels per class."""

    files: dict[Path, bytes]
    pixels: np.ndarray


def import_labels(source: Source, folder: Path, out: Path, dataset: DatasetInfo, *, num_threads: int) -> Imported:
    """Checks the labels of another tool and writes them to a folder; the same call again writes what is missing.

    The labels become palette PNGs with the colors of the dataset, OUT/labels/ID.png. Confidences, if there are any,
    become OUT/confidence/ID.png. Neither the images nor the labels of the tool are changed.

    Args:
        source: The OOD images.
        folder: The labels, see `external`.
        out: The folder to write to.
        dataset: Classes and palette.
        num_threads: Threads that read and write files.

    Raises:
        InputError: Labels are missing, invalid, or of no image, or `out` has other labels; all in one error. Nothing is
            written then.
    """
    faults, labels, ids = Faults(), None, set(source.ids())
    with faults.collected():
        labels = _open(folder, out)
    if labels is not None:
        faults.add(fault.message for fault in external_faults(labels, source, dataset, num_threads))
        faults.add(_extra_faults(labels, ids))
    faults.add(_foreign_faults(out, ids))
    faults.refuse()
    assert labels is not None
    joined = LabeledSource(source, labels)
    positions = {id_: position for position, id_ in enumerate(source.ids()) if labels.is_labeled(id_)}
    old = [id_ for id_ in positions if plane_path(out, "labels", id_).exists()]
    new = [id_ for id_ in positions if not plane_path(out, "labels", id_).exists()]

    def compare(id_: str) -> tuple[np.ndarray, bool]:
        planes = _planes(joined[positions[id_]], out, dataset)
        there = {path for path in (plane_path(out, kind, id_) for kind in _KINDS) if path.exists()}
        same = there == set(planes.files) and all(path.read_bytes() == planes.files[path] for path in there)
        return planes.pixels, same

    def write(id_: str) -> np.ndarray:
        planes = _planes(joined[positions[id_]], out, dataset)
        for path, content in planes.files.items():
            write_whole(path, content)
        return planes.pixels

    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        compared = list(map_in_chunks(pool, compare, old))
        if changed := [id_ for id_, (_, same) in zip(old, compared, strict=True) if not same]:
            raise InputError(
                f"--out={out}: {len(changed)} label(s) or confidences there are not those of --import "
                f"({first_few(changed, 3)}); remove the folder, or choose another one"
            )
        rows = [row for row, _ in compared] + list(map_in_chunks(pool, write, new))
    pixels = np.array(rows, np.int64).reshape(-1, dataset.num_classes + 1).sum(0)
    return Imported(open_external_labels(out), len(positions), len(new), pixels)


def _open(folder: Path, out: Path) -> ExternalLabels:
    if not folder.is_dir():
        raise InputError(
            f"--import={folder}: no such folder; name the folder that holds labels/ID.png or ID.png for each OOD image"
        )
    if out.exists() and out.samefile(folder):
        raise InputError(
            f"--out={out}: is the folder of --import; choose another one, or read the labels where they are: "
            f"--config.ovs.labels=external --config.ovs.labels_dir={folder}"
        )
    return open_external_labels(folder)


def _extra_faults(labels: ExternalLabels, ids: Collection[str]) -> Iterator[str]:
    """The fault of label files that belong to no image."""
    found = [path for path in files_below(labels.labels) if path.endswith(".png")]
    if labels.labels == labels.folder:
        found = [path for path in found if not path.startswith("confidence/")]
    if extra := [path for path in found if record_id(path) not in ids]:
        yield (
            f"{labels.labels}: {len(extra)} label(s) belong to no OOD image ({first_few(extra, 3)}); a label has the "
            "path of its image below the images' folder, with the suffix .png; rename or remove them"
        )


def _foreign_faults(out: Path, ids: Collection[str]) -> Iterator[str]:
    """The fault of a folder that has labels which an import does not write."""
    if (out / MANIFEST).exists():
        yield f"--out={out}: has labels that semiovs_jax.label made; choose another folder"
    elif foreign := [path for path in files_below(out / "labels") if record_id(path) not in ids]:
        yield (
            f"--out={out}: has {len(foreign)} label(s) of other images ({first_few(foreign, 3)}); choose another folder"
        )


def _planes(record: Record, out: Path, dataset: DatasetInfo) -> _Planes:
    assert record.label is not None
    label = decode_label(record.label, dataset)
    confidence = decode_confidence(record.confidence) if record.confidence else np.full_like(label, _CERTAIN)
    encoded = encode_label(record.id, label, confidence, dataset)
    files = {plane_path(out, "labels", record.id): encoded.label}
    if record.confidence:
        files = {plane_path(out, "confidence", record.id): encoded.confidence, **files}
    return _Planes(files, encoded.pixels)
