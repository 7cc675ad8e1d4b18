"""Opens the splits a run reads and looks at every record, noting what its files are and all that is wrong with them."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Fault, InputError
from data_pipelines.images.decode import ImageFacts, LabelFacts, label_fault, probe_image, probe_label, size_fault
from data_pipelines.loading.streams import open_stream
from data_pipelines.sources.records import EncodedImage, Source, UnreadableError

Facts = TypeVar("Facts")


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


def open_splits(config: Any) -> tuple[dict[str, Source], list[str]]:
    """Opens every split that the config's method reads.

    Args:
        config: The whole config; its `data`, `method` and `ovs` sections are read.

    Returns:
        The sources by split, "labeled", "val" and, where the method reads them, "unlabeled" and "ood"; and messages
        about splits that cannot be opened.
    """
    splits = ["labeled", "val"]
    splits += ["unlabeled"] if config.method.name != "supervised" else []
    splits += ["ood"] if config.method.ood != "none" else []
    sources: dict[str, Source] = {}
    faults = []
    for split in splits:
        try:
            sources[split] = open_stream(config.data, split)
        except InputError as error:
            faults.append(str(error))
    if "ood" in sources and not sources["ood"].prepared and (fault := _labels_dir_fault(config)):
        faults.append(fault)
    return sources, list(dict.fromkeys(faults))  # a missing root is one fault, not one of each split


def survey_split(source: Source, info: DatasetInfo | None, pool: Executor) -> Iterator[RecordFacts]:
    """Looks at all records of a split, in order: photographs must end as complete files do, labels are decoded.

    Args:
        source: The split.
        info: The dataset, which decides what a label may hold; None to leave contents unjudged.
        pool: Looks at many records at a time.
    """
    return pool.map(lambda index: _survey(source, index, info), range(len(source)))


def _labels_dir_fault(config: Any) -> str | None:
    """Cached labels below a scanned OOD folder would be read as OOD images by the next run."""
    labels_dir = config.get("ovs", {}).get("labels_dir", "")
    if config.data.ood_split or not labels_dir:
        return None
    root, cache = (Path(os.path.realpath(folder)) for folder in (config.data.ood_root, labels_dir))
    if not cache.is_relative_to(root):
        return None
    return (
        f"config.ovs.labels_dir={labels_dir} lies below config.data.ood_root={config.data.ood_root}, whose images "
        "are all read: labels would be taken for images; put labels_dir elsewhere or set config.data.ood_split"
    )


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
