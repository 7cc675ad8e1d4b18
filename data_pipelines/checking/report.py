"""A report on a run's data before it starts: the contents of every split, and all problems with what to do."""

import dataclasses
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from data_pipelines.checking.survey import (
    RecordFacts,
    SplitReport,
    Surveys,
    ValueCount,
    forbidding,
    spot_checked,
    survey_split,
    unreadable_training_files,
)
from data_pipelines.checking.warnings import (
    count_warnings,
    duplicate_warning,
    label_warnings,
    overlap_warnings,
    repetition_warnings,
    skipped_warning,
)
from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import Fault, InputError, first_few
from data_pipelines.images.decode import ImageFacts, LabelFacts
from data_pipelines.sources.records import EncodedImage, Source

_LABELED = ("labeled", "val")
_BAR_DELAY = 2.0  # seconds before a progress bar is worth its line


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What a run's data are.

    Attributes:
        splits: What each split that can be opened holds.
        overlaps: Ids that two splits share, by the pair of splits ("labeled and val").
        duplicates: Files of the same bytes, of a split and of val, by the split; the same file in both is an overlap.
            Empty without val.
        ood_ids: Ids of the OOD images.
        val_sizes: (height, width) of the validation images that can be read.
        faults: What forbids a run, each with what to do about it.
        warnings: What is allowed but worth a look.
    """

    splits: dict[str, SplitReport]
    overlaps: dict[str, list[str]]
    duplicates: dict[str, list[tuple[str, str]]]
    ood_ids: tuple[str, ...]
    val_sizes: tuple[tuple[int, int], ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def report_data(
    sources: Mapping[str, Source], info: DatasetInfo | None, data_config: Any, *, thorough: bool
) -> DataReport:
    """Looks at all records of a run; what is wrong with one split does not hide the others.

    All images must be there and end as complete files do; all labels are decoded and checked for mode, range and size.
    Nothing is remembered: a file that was fixed or broken since the last run is seen as it is now. Shows a progress
    bar where it takes long.

    Args:
        sources: The opened splits.
        info: The dataset; None to leave the values of labels unjudged.
        data_config: The `data` section of the config.
        thorough: Whether to look at every image of shards, too, which were checked when they were written, and for
            copies of validation images.
    """
    with ThreadPoolExecutor(max(1, data_config.num_threads)) as pool:
        surveys = {
            split: _survey(split, source if thorough else spot_checked(source), info, pool)
            for split, source in sources.items()
        }
        duplicates = _duplicates(sources, surveys, pool) if thorough else {}
    splits = {split: _split_report(split, records) for split, records in surveys.items()}
    ids = {split: _ids(source) for split, source in sources.items()}
    ood_ids = ids.pop("ood", [])
    skipped = unreadable_training_files(surveys)
    tolerant = len(skipped) <= data_config.max_bad_records
    faults: list[str] = []
    for split, records in surveys.items():
        hints = {"range": _count_from_one(splits[split], info)}
        faults += _file_faults(split, records, data_config, hints, tolerant=tolerant)
    warnings = [skipped_warning(skipped, data_config.max_bad_records)] if skipped and tolerant else []
    warnings += overlap_warnings(ids)
    warnings += [duplicate_warning(split, pairs) for split, pairs in duplicates.items() if pairs]
    warnings += [
        warning for split, listed in ids.items() for warning in repetition_warnings(split, listed, data_config)
    ]
    if info:
        for split, found in splits.items():
            warnings += label_warnings(split, found, info)
        warnings += count_warnings(ids, info)
    overlaps = {
        f"{one} and {other}": sorted(set(ids[one]) & set(ids[other])) for one, other in itertools.combinations(ids, 2)
    }
    val_sizes = tuple(record.image.size for record in surveys.get("val", ()) if record.image)
    return DataReport(
        splits, overlaps, duplicates, tuple(ood_ids), val_sizes, tuple(dict.fromkeys(faults)), tuple(warnings)
    )


def _survey(split: str, source: Source, info: DatasetInfo | None, pool: Executor) -> list[RecordFacts]:
    found = survey_split(source, info, pool)
    return list(tqdm(found, total=len(source), desc=split, unit="record", delay=_BAR_DELAY, leave=False))


def _ids(source: Source) -> list[str]:
    try:
        return list(source.ids())
    except InputError:  # the survey reports the record without one
        return []


def _split_report(split: str, records: Sequence[RecordFacts]) -> SplitReport:
    images = [record.image for record in records if record.image]
    labels = [record.label for record in records if record.label]
    sizes = sorted(((image.size[1], image.size[0]) for image in images), key=lambda size: (size[0] * size[1], size))
    values: dict[int, ValueCount] = {}
    for label in labels:
        for value, pixels in label.values.items():
            known = values.get(value, ValueCount(0, 0, label.name))
            values[value] = ValueCount(known.images + 1, known.pixels + pixels, known.example)
    return SplitReport(
        records=len(records),
        unreadable=sum(fault.kind == "unreadable" for record in records for fault in record.faults),
        images=_kinds(images),
        sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else (),
        labels=_kinds(labels) if split in _LABELED else None,
        values=dict(sorted(values.items())),
    )


def _kinds(images: Sequence[ImageFacts | LabelFacts]) -> dict[str, int]:
    return dict(Counter(f"{image.format} {image.mode}" for image in images).most_common())


def _file_faults(
    split: str, records: Sequence[RecordFacts], data: Any, hints: Mapping[str, str], *, tolerant: bool
) -> list[str]:
    """One message for all files of a split that have the same fault; `hints` are added by kind of fault."""
    groups: dict[str, list[Fault]] = defaultdict(list)
    for record in records:
        for fault in forbidding(split, record, tolerant=tolerant):
            groups[fault.kind].append(fault)
    messages = []
    for kind, group in groups.items():
        faults = sorted(set(group))
        if kind == "unreadable":
            remedy = (
                f"fix them or take their lines out of config.data.val_split={data.val_split}"
                if split == "val"
                else f"fix or remove them, or raise config.data.max_bad_records={data.max_bad_records} to have other "
                "records stand in"
            )
            names = first_few([fault.message for fault in faults])
            messages.append(f"{split}: {len(faults)} file(s) cannot be read: {names}: {remedy}")
        else:
            alike = [fault.file for fault in faults[1:]]
            more = f" ({len(alike)} more file(s) alike: {first_few(alike)})" if alike else ""
            messages.append(f"{split}: {faults[0].message}{more}{hints.get(kind, '')}")
    return messages


def _count_from_one(found: SplitReport, info: DatasetInfo | None) -> str:
    """A hint on the most common reason for values out of range, which needs all files; "" if it does not apply."""
    values = found.values.keys() - ({info.ignore_index} if info else set())
    if not info or 0 in values or max(values, default=0) != info.num_classes:
        return ""
    return (
        f"; all labels hold 1..{info.num_classes} and none holds 0, so they seem to count from 1: subtract 1 from "
        f"every value but the ignore index {info.ignore_index}"
    )


def _duplicates(sources: Mapping[str, Source], surveys: Surveys, pool: Executor) -> dict[str, list[tuple[str, str]]]:
    """Pairs of names by split, see `DataReport`. Reads only images that are exactly as long as one of val."""
    lengths = {split: {record.image.length for record in records if record.image} for split, records in surveys.items()}
    if "val" not in lengths:
        return {}
    validation = lengths.pop("val")
    elsewhere = set().union(*lengths.values())

    def candidates(split: str, wanted: set[int]) -> list[tuple[bytes, EncodedImage]]:
        source, records = sources[split], surveys[split]
        images = [source[i].image for i, found in enumerate(records) if found.image and found.image.length in wanted]
        return list(zip(pool.map(_digest, images), images, strict=True))

    known = dict(candidates("val", elsewhere)) if validation & elsewhere else {}
    return {
        split: [
            (image.name, known[digest].name)
            for digest, image in (candidates(split, validation) if known else ())
            if digest in known and image != known[digest]
        ]
        for split in lengths
    }


def _digest(image: EncodedImage) -> bytes:
    return hashlib.sha256(image.read()).digest()
