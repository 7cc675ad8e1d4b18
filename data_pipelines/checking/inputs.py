"""Looks at all inputs of a run before any long work, and says everything that is wrong with them at once."""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.checking.survey import RecordFacts, Surveys, open_splits, survey_split
from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import Fault, InputError, first_few
from data_pipelines.sources.records import SelectedSource, Source

_SPOT_CHECKS = 64


@dataclasses.dataclass(frozen=True)
class InputSummary:
    """What `check_inputs` found in inputs that can be used.

    Attributes:
        counts: Number of records by split: "labeled", "val" and, where the method reads them, "unlabeled", "ood".
        unreadable: One message for each record that training will have to pass over.
        warnings: What is allowed but worth a look, such as training images in the validation split.
    """

    counts: dict[str, int]
    unreadable: tuple[str, ...]
    warnings: tuple[str, ...]


def check_inputs(config: Any) -> InputSummary:
    """Checks every split that the config's method reads.

    All images must be there and end as complete files do; all labels are decoded and checked for mode, range
    and size. Of shards without labels, whose images were looked at when they were written, a few records are read.
    Nothing is remembered: a file mended or broken since the last run is seen as it is now.

    Args:
        config: The whole config; its `data`, `method` and `ovs` sections are read.

    Returns:
        Counts by split, and what to tell the user. Warnings are logged as well.

    Raises:
        InputError: A root or split is missing, empty or malformed; a label is not a plane of the dataset's
            indices; a validation file cannot be read; or more training files cannot be read than
            `config.data.max_bad_records` allows. All faults of all splits are in one message.
    """
    data = config.data
    info = dataset_info(data.dataset)
    sources, unopened = open_splits(config)
    if unopened:
        raise InputError("\n".join(unopened))
    with ThreadPoolExecutor(max(1, data.num_threads)) as pool:
        surveys = {
            split: list(survey_split(_worth_looking_at(source), info, pool)) for split, source in sources.items()
        }
    unreadable = _judge(surveys, data.max_bad_records)
    ids = {split: source.ids() for split, source in sources.items() if split != "ood"}
    warnings = (*overlap_warnings(ids), *count_warnings(ids, info))
    for warning in (*unreadable, *warnings):
        logging.getLogger(__name__).warning(warning)
    counts = {split: len(source) for split, source in sources.items()}
    return InputSummary(counts, unreadable, warnings)


def check_workdir(path: str | Path) -> Path:
    """Creates the work directory and writes a file into it to see that it can.

    Raises:
        InputError: The folder cannot be created or written.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"--workdir={path}: cannot be written ({reason}); choose a folder you may write to") from error
    return folder


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


def overlap_warnings(ids: Mapping[str, Sequence[str]]) -> list[str]:
    """Says which training splits share images with validation, by the ids of the splits that are there."""
    validation = set(ids.get("val", ()))
    return [
        f"{len(shared)} image(s) of the {split} split are in the val split too ({', '.join(shared[:3])}): "
        "validation results will be too good"
        for split in ("labeled", "unlabeled")
        if (shared := sorted(validation & set(ids.get(split, ()))))
    ]


def count_warnings(ids: Mapping[str, Sequence[str]], info: DatasetInfo) -> list[str]:
    """Says which splits are not of the published size, by the ids of the splits that are there."""
    found = {"val": set(ids["val"])} if "val" in ids else {}
    if "labeled" in ids and "unlabeled" in ids:
        found["train"] = {*ids["labeled"], *ids["unlabeled"]}
    return [
        f"{split}: {len(images)} images, {info.counts[split]} in the published {info.name} split; "
        "results do not compare with published ones"
        for split, images in found.items()
        if split in info.counts and len(images) != info.counts[split]
    ]


def _worth_looking_at(source: Source) -> Source:
    """A source's records, or some from all over it where more would take long and tell little."""
    if not source.prepared or len(source) <= _SPOT_CHECKS or source[0].label is not None:
        return source
    return SelectedSource(source, np.linspace(0, len(source) - 1, _SPOT_CHECKS).astype(np.int64))


def _judge(surveys: Surveys, allowed: int) -> tuple[str, ...]:
    """Raises if the faults of all splits forbid a run; returns the unreadable records that do not."""
    skipped = unreadable_training_files(surveys)
    tolerant = len(skipped) <= allowed
    messages = []
    for split, records in surveys.items():
        unusable = [faults for record in records if (faults := forbidding(split, record, tolerant=tolerant))]
        if unusable:
            faults = sorted({fault for found in unusable for fault in found}, key=lambda f: (f.kind == "unreadable", f))
            few = first_few([fault.message for fault in faults])
            messages.append(f"{split}: {len(unusable)} of {len(records)} records cannot be used: {few}")
    if messages and not tolerant:
        messages.append(
            f"{len(skipped)} training file(s) cannot be read and config.data.max_bad_records={allowed}: mend or remove "
            "them, or raise the limit to have other records stand in"
        )
    if messages:
        raise InputError("\n".join(messages))
    return tuple(skipped)
