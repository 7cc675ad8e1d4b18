"""OOD labels that another tool has made: PNG files without a manifest, joined to images by id.

    FOLDER/labels/ID.png       class indices, as palette (P) or 8-bit gray (L) PNG
    FOLDER/confidence/ID.png   optional: 8-bit gray, 255 is certain

The labels may also be directly below the folder, as FOLDER/ID.png. ID is the path of the image below the OOD root,
without suffix. Without confidence files, the confidence is 255 for every pixel.
"""

import dataclasses
import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Fault, InputError
from data_pipelines.files import is_remote, objects_below
from data_pipelines.images.decode import image_size, label_fault, probe_image, probe_label, size_fault
from data_pipelines.labels.cache import LabeledSource
from data_pipelines.labels.manifest import MANIFEST
from data_pipelines.sources.records import File, Record, Source, UnreadableError

_FEW = 5  # messages of one kind
_CHUNK = 4096  # records that wait for a thread
_MISSING, _UNSURE = "missing", "confidence missing"  # kinds of faults


@dataclasses.dataclass(frozen=True)
class ExternalLabels:
    """Labels of another tool, a `LabelCache`. An image without a confidence file has confidence 255 in every pixel.

    Attributes:
        folder: The folder, `config.ovs.labels_dir`.
        labels: Folder of the label files: `folder`, or "labels" in it.
        confidence: Folder of the confidence files; None if it does not exist.
    """

    folder: Path
    labels: Path
    confidence: Path | None

    @property
    def bad(self) -> Mapping[str, str]:
        """No bad images: there is no record of them."""
        return {}

    def is_labeled(self, id_: str) -> bool:
        """Whether the label file of the image exists."""
        return self._exists(self.labels, id_)

    def planes(self, id_: str) -> tuple[File, File | None]:
        """The label file of the image, which may be missing, and its confidence file, None if it is missing."""
        folder = self.confidence
        path = folder and folder / f"{id_}.png"
        return File(self._label(id_)), File(path) if folder and path and self._exists(folder, id_) else None

    def faults(self) -> list[str]:
        """No faults: `external_faults` checks the files."""
        return []

    def _exists(self, folder: Path, id_: str) -> bool:
        """Whether there is a file for the image; object storage is listed once, as a request takes long."""
        if is_remote(folder):
            return f"{id_}.png" in self._listed[folder]
        return (folder / f"{id_}.png").exists()

    @functools.cached_property
    def _listed(self) -> dict[Path, frozenset[str]]:
        return {folder: objects_below(folder) for folder in (self.labels, self.confidence) if folder}

    def _label(self, id_: str) -> Path:
        return self.labels / f"{id_}.png"


def open_external_labels(folder: Path) -> ExternalLabels:
    """Opens the labels of another tool. Reads no files.

    Raises:
        InputError: The folder is missing, or holds labels of `semiovs_jax.label`.
    """
    if not folder.is_dir():
        raise InputError(
            f"config.ovs.labels_dir={folder}: no such folder; set it to the folder that holds labels/ID.png or ID.png "
            "for each OOD image"
        )
    if (folder / MANIFEST).exists():
        raise InputError(
            f"{folder / MANIFEST}: the labels of this folder are made by semiovs_jax.label, expected labels of another "
            "tool; set config.ovs.labels='cached', or remove the manifest"
        )
    labels, confidence = folder / "labels", folder / "confidence"
    return ExternalLabels(folder, labels if labels.is_dir() else folder, confidence if confidence.is_dir() else None)


def external_faults(cache: ExternalLabels, source: Source, dataset: DatasetInfo, num_threads: int) -> list[Fault]:
    """Checks that every OOD image has a valid label, and that all labels have a valid confidence or none has.

    Decodes the labels. Of images and confidences, reads the header and the end. An unreadable image needs no label:
    training passes over it.

    Args:
        cache: The labels.
        source: The OOD images.
        dataset: Classes and ignore index of the labels.
        num_threads: Threads that read files.

    Returns:
        One fault for each kind of fault: the message counts the files and describes the first few.
    """
    joined = LabeledSource(source, cache)
    groups: dict[str, _Group] = {}
    confident = 0
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for start in range(0, len(joined), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(joined)))
            for record, faults in pool.map(lambda index: _check(joined[index], cache, dataset), indices):
                confident += record.confidence is not None
                for fault in faults:
                    groups.setdefault(fault.kind, _Group()).add(fault)
    if not confident:
        groups.pop(_UNSURE, None)
    return [
        Fault(kind, group.few[0].file, f"{_intro(kind, group.count, confident, cache, len(joined))}: {group}")
        for kind, group in groups.items()
    ]


def _intro(kind: str, count: int, confident: int, cache: ExternalLabels, images: int) -> str:
    """What a kind of fault is, and what to do if its messages do not include that."""
    if kind == _MISSING:
        return (
            f"{cache.labels}: {count} of {images} OOD images have no label; write a label for each image, or list the "
            "other images in config.data.ood_split"
        )
    if kind == _UNSURE:
        return (
            f"{cache.confidence}: {count} labels have no confidence, {confident} have one; write one for each label, "
            "or remove the folder to trust all labels"
        )
    return f"{count} invalid file(s) ({kind})"


def missing_confidence(cache: ExternalLabels, source: Source, ovs_threshold: float) -> Fault | None:
    """The fault if a method compares confidences with a threshold above 0, but no label has a confidence."""
    if ovs_threshold <= 0 or any(cache.planes(id_)[1] for id_ in source.ids()):
        return None
    folder = cache.folder / "confidence"
    message = (
        f"{folder}: holds no confidence of an OOD image, but config.method.ovs_threshold={ovs_threshold} needs one for "
        "each; write confidence/ID.png (8-bit gray, 255 is certain), or set config.method.ovs_threshold=0"
    )
    return Fault(_UNSURE, str(folder), message)


@dataclasses.dataclass
class _Group:
    """The number of faults of one kind, and the first few."""

    count: int = 0
    few: list[Fault] = dataclasses.field(default_factory=list)

    def add(self, fault: Fault) -> None:
        self.count += 1
        if len(self.few) < _FEW:
            self.few.append(fault)

    def __str__(self) -> str:
        more = f"; and {self.count - _FEW} more" if self.count > _FEW else ""
        return "; ".join(fault.message for fault in self.few) + more


def _check(record: Record, cache: ExternalLabels, dataset: DatasetInfo) -> tuple[Record, list[Fault]]:
    if cache.is_labeled(record.id):
        return record, _label_faults(record, cache, dataset)
    try:
        probe_image(record.image)
    except UnreadableError:
        return record, []
    name = str(cache.labels / f"{record.id}.png")
    return record, [Fault(_MISSING, name, name)]


def _label_faults(record: Record, cache: ExternalLabels, dataset: DatasetInfo) -> list[Fault]:
    assert record.label is not None  # as `ExternalLabels.planes` returns
    name = record.label.name
    try:
        size = image_size(record.image)
    except UnreadableError:
        size = None  # the check of the images reports it
    faults = []
    try:
        label = probe_label(record.label)
        if fault := label_fault(label, dataset):
            faults.append(fault)
        if size and label.size != size:
            faults.append(Fault("size", name, size_fault(record, "label", size, label.size)))
    except UnreadableError as error:
        faults.append(Fault("unreadable", name, f"{error}; write the file again"))
    return faults + _confidence_faults(record, cache, size)


def _confidence_faults(record: Record, cache: ExternalLabels, size: tuple[int, int] | None) -> list[Fault]:
    if record.confidence is None:
        name = str((cache.confidence or cache.folder / "confidence") / f"{record.id}.png")
        return [Fault(_UNSURE, name, name)]
    name = record.confidence.name
    try:
        confidence = probe_image(record.confidence)
    except UnreadableError as error:
        return [Fault("unreadable", name, f"{error}; write the file again")]
    faults = []
    if confidence.mode != "L":
        message = f"{name}: confidence image has mode {confidence.mode}, expected 8-bit gray (L); save it as mode L"
        faults.append(Fault("confidence mode", name, message))
    if size and confidence.size != size:
        faults.append(Fault("size", name, size_fault(record, "confidence", size, confidence.size)))
    return faults
