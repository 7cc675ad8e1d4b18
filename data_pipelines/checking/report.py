"""All that can be known of a run's data before it starts: what the splits hold, and everything that is to be mended."""

import dataclasses
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from data_pipelines.checking.inputs import count_warnings, forbidding, overlap_warnings, unreadable_training_files
from data_pipelines.checking.survey import RecordFacts, Surveys, open_splits, survey_split
from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import Fault, InputError, first_few
from data_pipelines.images.decode import ImageFacts, LabelFacts
from data_pipelines.sources.records import EncodedImage, Source

_LABELED = ("labeled", "val")
_BAR_DELAY = 2.0  # seconds before a progress bar is worth its line


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
    """

    records: int
    unreadable: int
    images: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    labels: dict[str, int] | None
    values: dict[int, ValueCount]


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What a run's data are.

    Attributes:
        dataset: Facts of the dataset; None if they cannot be read.
        splits: What each split that can be opened holds.
        overlaps: Ids that two splits share, by the pair of splits ("labeled and val").
        duplicates: Files of the same bytes, of a split and of val, by the split; the same file in both is an overlap.
            Empty without val.
        ood_ids: Ids of the OOD images.
        faults: What forbids a run, each with what to do about it.
        warnings: What is allowed but worth a look.
    """

    dataset: DatasetInfo | None
    splits: dict[str, SplitReport]
    overlaps: dict[str, list[str]]
    duplicates: dict[str, list[tuple[str, str]]]
    ood_ids: tuple[str, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def report_data(config: Any) -> DataReport:
    """Looks at all splits that the config's method reads; what is wrong with one does not hide the others.

    Faults are those that `inputs.check_inputs` refuses. Shows a progress bar where it takes long.

    Args:
        config: The whole config; its `data`, `method` and `ovs` sections are read.
    """
    data = config.data
    info, faults = _dataset(data.dataset)
    sources, unopened = open_splits(config)
    with ThreadPoolExecutor(max(1, data.num_threads)) as pool:
        surveys = {split: _survey(split, source, info, pool) for split, source in sources.items()}
        duplicates = _duplicates(sources, surveys, pool)
    splits = {split: _split_report(split, records) for split, records in surveys.items()}
    ids = {split: _ids(source) for split, source in sources.items()}
    ood_ids = ids.pop("ood", [])
    skipped = unreadable_training_files(surveys)
    tolerant = len(skipped) <= data.max_bad_records
    for split, records in surveys.items():
        hints = {"range": _count_from_one(splits[split], info)}
        faults += _file_faults(split, records, data, hints, tolerant=tolerant)
    warnings = [_skipped_warning(skipped, data.max_bad_records)] if skipped and tolerant else []
    warnings += overlap_warnings(ids)
    warnings += [_duplicate_warning(split, pairs) for split, pairs in duplicates.items() if pairs]
    warnings += [warning for split, listed in ids.items() for warning in _repetition_warnings(split, listed, data)]
    if info:
        for split, found in splits.items():
            warnings += _label_warnings(split, found, info)
        warnings += count_warnings(ids, info)
    overlaps = {
        f"{one} and {other}": sorted(set(ids[one]) & set(ids[other])) for one, other in itertools.combinations(ids, 2)
    }
    return DataReport(
        info, splits, overlaps, duplicates, tuple(ood_ids), tuple(dict.fromkeys(unopened + faults)), tuple(warnings)
    )


def _dataset(name_or_path: str) -> tuple[DatasetInfo | None, list[str]]:
    try:
        return dataset_info(name_or_path), []
    except InputError as error:
        return None, [f"config.data.dataset: {error} (meanwhile the values of labels are not judged)"]


def _survey(split: str, source: Source, info: DatasetInfo | None, pool: Executor) -> list[RecordFacts]:
    found = survey_split(source, info, pool)
    return list(tqdm(found, total=len(source), desc=split, unit="record", delay=_BAR_DELAY, leave=False))


def _ids(source: Source) -> list[str]:
    try:
        return list(source.ids())
    except InputError:  # the survey tells which record has none
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
            mend = (
                f"mend them or take their lines out of config.data.val_split={data.val_split}"
                if split == "val"
                else f"mend or remove them, or raise config.data.max_bad_records={data.max_bad_records} to have other "
                "records stand in"
            )
            names = first_few([fault.message for fault in faults])
            messages.append(f"{split}: {len(faults)} file(s) cannot be read: {names}: {mend}")
        else:
            alike = [fault.file for fault in faults[1:]]
            more = f" ({len(alike)} more file(s) alike: {first_few(alike)})" if alike else ""
            messages.append(f"{split}: {faults[0].message}{more}{hints.get(kind, '')}")
    return messages


def _count_from_one(found: SplitReport, info: DatasetInfo | None) -> str:
    """The commonest reason for values out of range, which no single file tells; "" if it is none."""
    values = found.values.keys() - ({info.ignore_index} if info else set())
    if not info or 0 in values or max(values, default=0) != info.num_classes:
        return ""
    return (
        f"; all labels hold 1..{info.num_classes} and none holds 0, so they seem to count from 1: subtract 1 from "
        f"every value but the ignore index {info.ignore_index}"
    )


def _label_warnings(split: str, found: SplitReport, info: DatasetInfo) -> list[str]:
    if not found.values:
        return []
    warnings = []
    if lossy := sum(count for kind, count in (found.labels or {}).items() if kind.startswith("JPEG")):
        warnings.append(f"{split}: {lossy} label(s) are JPEG, which blurs indices at borders; save labels as PNG")
    if absent := [f"{i} {name}" for i, name in enumerate(info.classes) if i not in found.values]:
        effect = {
            "labeled": "a student learns it from no true label; add labeled images that show it",
            "val": "it counts as IoU 0 in the mean over all classes; add validation images that show it",
        }
        names = first_few(absent, 20)
        warnings.append(f"{split}: {len(absent)} of {info.num_classes} classes in no label ({names}): {effect[split]}")
    return warnings


def _repetition_warnings(split: str, ids: Sequence[str], data: Any) -> list[str]:
    repeated = sorted(id_ for id_, count in Counter(ids).items() if count > 1)
    if not repeated:
        return []
    field = f"{split}_split"
    return [
        f"{split}: {len(repeated)} image(s) are listed more than once ({first_few(repeated, 3)}) and count as often; "
        f"keep one line each in config.data.{field}={data[field]}"
    ]


def _skipped_warning(skipped: Sequence[str], allowed: int) -> str:
    return (
        f"{len(skipped)} training file(s) cannot be read and will be passed over, as config.data.max_bad_records="
        f"{allowed} allows: {first_few(skipped)}"
    )


def _duplicate_warning(split: str, pairs: Sequence[tuple[str, str]]) -> str:
    few = first_few([f"{one} is {other}" for one, other in pairs], 3)
    return (
        f"{split}: {len(pairs)} image(s) hold the bytes of images of the val split ({few}): "
        f"validation results will be too good; remove them from the {split} images"
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
