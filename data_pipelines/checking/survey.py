"""Opens the splits a run reads and looks at every record, noting what its files are and all that is wrong with them."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Fault, Faults, InputError
from data_pipelines.files import expand, is_remote
from data_pipelines.images.decode import ImageFacts, LabelFacts, label_fault, probe_image, probe_label, size_fault
from data_pipelines.loading.streams import open_config_split
from data_pipelines.sources.records import EncodedImage, SelectedSource, Source, UnreadableError

Facts = TypeVar("Facts")

_SPOT_CHECKS = 64


class RecordFacts(NamedTuple):
    """What the files of one record are.

    Attributes:
        image: Facts of the photograph; None if it cannot be read.
        label: Facts of the label; None if there is none or it cannot be read.
        faults: All that is wrong, of kind "unreadable", "id", "size" or a kind of `decode.label_fault`.
    """

    image: ImageFacts | None
    label: LabelFacts | None
    faults: tuple[Fault, ...]


Surveys = Mapping[str, Sequence[RecordFacts]]


@dataclasses.dataclass(frozen=True)
class ValueCount:
    """How often a value occurs in the labels of a split.

    Attributes:
        images: Labels that hold it.
        pixels: Pixels of it in all labels.
        example: A file that holds it.
    """

    images: int
    pixels: int
    example: str


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What a split holds.

    Attributes:
        records: Number of records.
        unreadable: Number of files that are missing, damaged or no images.
        images: Number of photographs by format and mode ("JPEG RGB").
        sizes: (width, height) of the photographs with the fewest, the median and the most pixels.
        labels: Number of labels by format and mode ("PNG P"); None for a split without labels.
        values: What the labels hold, by value.
        turned_images: Number of photographs that an EXIF orientation turns.
        turned_labels: Number of labels that an EXIF orientation turns.
        unread_labels: Number of labels that the split list names and that are not read.
    """

    records: int
    unreadable: int
    images: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    labels: dict[str, int] | None
    values: dict[int, ValueCount]
    turned_images: int = 0
    turned_labels: int = 0
    unread_labels: int = 0


def open_splits(data_config: Any, splits: Sequence[str], faults: Faults) -> dict[str, Source]:
    """Opens each of the splits once; those that cannot be opened are left out and added to the faults.

    Args:
        data_config: The `data` section of the config.
        splits: Names out of "labeled", "unlabeled", "val" and "ood".
        faults: Where to add what is wrong.
    """
    sources: dict[str, Source] = {}
    for split in splits:
        with faults.collected():
            sources[split] = open_config_split(data_config, split)
    return sources


def labels_dir_fault(data_config: Any, labels_dir: str) -> str | None:
    """What is wrong with cached labels below a scanned OOD folder: the next run would read them as OOD images."""
    if data_config.ood_split or not labels_dir or is_remote(labels_dir):
        return None
    root, cache = (Path(os.path.realpath(expand(folder))) for folder in (data_config.ood_root, labels_dir))
    if not cache.is_relative_to(root):
        return None
    return (
        f"config.ovs.labels_dir={labels_dir} is below config.data.ood_root={data_config.ood_root}, whose images are "
        "all read: labels would be taken for images; choose another labels_dir, or set config.data.ood_split"
    )


def unreadable_training_files(surveys: Surveys) -> list[str]:
    """A message for each file of the training splits that cannot be read, sorted."""
    records = (record for split, found in surveys.items() if split != "val" for record in found)
    return sorted({fault.message for record in records for fault in record.faults if fault.kind == "unreadable"})


def forbidding(split: str, record: RecordFacts, *, tolerant: bool) -> list[Fault]:
    """The faults of a record that forbid a run.

    Args:
        split: The record's split; validation never passes over a record.
        record: What its files are.
        tolerant: Whether other training records may stand in for those that cannot be read.
    """
    return [fault for fault in record.faults if fault.kind != "unreadable" or split == "val" or not tolerant]


def spot_checked(source: Source) -> Source:
    """The records to look at: all, or a few of shards without labels, whose images were checked when written."""
    if not source.prepared or len(source) <= _SPOT_CHECKS or source[0].label is not None:
        return source
    return SelectedSource(source, np.linspace(0, len(source) - 1, _SPOT_CHECKS).astype(np.int64))


def survey_split(source: Source, info: DatasetInfo | None, pool: Executor) -> Iterator[RecordFacts]:
    """Looks at all records of a split, in order: photographs must end as complete files do, labels are decoded.

    Args:
        source: The split.
        info: The dataset, which decides what a label may hold; None to leave contents unjudged.
        pool: Looks at many records at a time.
    """
    return pool.map(lambda index: _survey(source, index, info), range(len(source)))


def _survey(source: Source, index: int, info: DatasetInfo | None) -> RecordFacts:
    try:
        record = source[index]
    except InputError as error:
        return RecordFacts(None, None, (Fault("id", f"record {index}", str(error)),))
    image, faults = _probe(probe_image, record.image)
    if record.label is None:
        return RecordFacts(image, None, faults)
    label, unreadable = _probe(probe_label, record.label)
    faults += unreadable
    if label and info and (fault := label_fault(label, info)):
        faults += (fault,)
    if label and image and label.size != image.size:
        faults += (Fault("size", label.name, size_fault(record, "label", image.size, label.size)),)
    return RecordFacts(image, label, faults)


def _probe(probe: Callable[[EncodedImage], Facts], encoded: EncodedImage) -> tuple[Facts | None, tuple[Fault, ...]]:
    try:
        return probe(encoded), ()
    except UnreadableError as error:
        return None, (Fault("unreadable", encoded.name, str(error)),)
