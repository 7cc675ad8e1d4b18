"""Looks at all inputs of a run before any long work, and says everything that is wrong with them at once."""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipelines.datasets import DatasetInfo, load_dataset
from data_pipelines.decode import decode_label, ensure_complete, image_size
from data_pipelines.errors import InputError
from data_pipelines.pipeline import size_fault
from data_pipelines.sources import Record, Source, UnreadableError, first_few, open_stream


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


@dataclasses.dataclass(frozen=True)
class _Faults:
    """Messages about the records of one split: files that cannot be read, and files with wrong contents."""

    total: int
    unreadable: list[str]
    wrong: list[str]


def check_inputs(config: Any) -> InputSummary:
    """Checks every split that the config's method reads.

    All images must be there and end as complete files do; all labels are decoded and checked for mode, range
    and size. Nothing is remembered: a file mended or broken since the last run is seen as it is now.

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
    info = load_dataset(data.dataset)
    streams = ["labeled", "val"]
    streams += ["unlabeled"] if config.method.name != "supervised" else []
    streams += ["ood"] if config.method.ood != "none" else []
    sources = {stream: open_stream(data, stream) for stream in streams}
    if "ood" in sources:
        _check_labels_dir(config)
    with ThreadPoolExecutor(max(1, data.num_threads)) as pool:
        faults = {stream: _inspect(source, info, pool.map) for stream, source in sources.items()}
    unreadable = _judge(faults, data.max_bad_records)
    warnings = (*_overlaps(sources), *_unpublished_counts(sources, info))
    for warning in (*unreadable, *warnings):
        logging.getLogger(__name__).warning(warning)
    counts = {stream: len(source) for stream, source in sources.items()}
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


def _inspect(source: Source, info: DatasetInfo, run: Callable[..., Any]) -> _Faults:
    found = _Faults(len(source), [], [])

    def inspect(index: int) -> None:
        record = source[index]
        try:
            _inspect_record(record, info)
        except UnreadableError as error:
            found.unreadable.append(str(error))
        except InputError as error:
            found.wrong.append(str(error))

    for _ in run(inspect, range(len(source))):
        pass
    found.unreadable.sort()
    found.wrong.sort()
    return found


def _inspect_record(record: Record, info: DatasetInfo) -> None:
    ensure_complete(record.image)
    if record.label is not None:
        size, label = image_size(record.image), decode_label(record.label, info)
        if label.shape != size:
            raise InputError(size_fault(record, "label", size, label.shape))


def _judge(faults: Mapping[str, _Faults], allowed: int) -> tuple[str, ...]:
    """Raises if the faults of all splits forbid a run; returns the unreadable records that do not."""
    messages = []
    skipped = sorted({fault for stream, found in faults.items() if stream != "val" for fault in found.unreadable})
    for stream, found in faults.items():
        intolerable = [*found.wrong, *(found.unreadable if stream == "val" or len(skipped) > allowed else [])]
        if intolerable:
            count = f"{len(intolerable)} of {found.total} records"
            messages.append(f"{stream}: {count} cannot be used: {first_few(intolerable)}")
    if messages and len(skipped) > allowed:
        messages.append(
            f"{len(skipped)} training file(s) cannot be read and config.data.max_bad_records={allowed}: mend or remove "
            "them, or raise the limit to have other records stand in"
        )
    if messages:
        raise InputError("\n".join(messages))
    return tuple(skipped)


def _overlaps(sources: Mapping[str, Source]) -> list[str]:
    validation = set(sources["val"].ids())
    warnings = []
    for stream in ("labeled", "unlabeled"):
        if stream in sources and (shared := sorted(validation & set(sources[stream].ids()))):
            warnings.append(
                f"{len(shared)} image(s) of the {stream} split are in the val split too ({', '.join(shared[:3])}): "
                "validation results will be too good"
            )
    return warnings


def _unpublished_counts(sources: Mapping[str, Source], info: DatasetInfo) -> list[str]:
    found = {"val": set(sources["val"].ids())}
    if "unlabeled" in sources:
        found["train"] = {*sources["labeled"].ids(), *sources["unlabeled"].ids()}
    return [
        f"{split}: {len(ids)} images, {info.counts[split]} in the published {info.name} split; "
        "results do not compare with published ones"
        for split, ids in found.items()
        if split in info.counts and len(ids) != info.counts[split]
    ]


def _check_labels_dir(config: Any) -> None:
    """Cached labels below a scanned OOD folder would be read as OOD images by the next run."""
    labels_dir = config.get("ovs", {}).get("labels_dir", "")
    if config.data.ood_split or not labels_dir:
        return
    root, cache = (Path(os.path.realpath(folder)) for folder in (config.data.ood_root, labels_dir))
    if cache.is_relative_to(root):
        raise InputError(
            f"config.ovs.labels_dir={labels_dir} lies below config.data.ood_root={config.data.ood_root}, whose images "
            "are all read: labels would be taken for images; put labels_dir elsewhere or set config.data.ood_split"
        )
