"""Prepares a dataset unit by unit. Each unit of a builder becomes one shard, in any order, on any machine.

`prepare_in_turn` works in this process, `beam` on many machines. A unit without samples becomes an empty shard.

    FOLDER/preparation.json                  the request: the units and the settings
    FOLDER/units/SPLIT-00003.json            the result of a unit with a complete shard; removed at the end
    FOLDER/NAME-SPLIT.array_record-...       the shards, SPLIT.ids.txt, dataset_info.json: see `shard_files`
    FOLDER/report.json                       written last: the images written, the files left out, and why

FOLDER is a local or mounted folder, the same for all machines. Units are written atomically, and finished units are
skipped: a killed preparation resumes and ends with the same bytes. A request for other units or settings in the same
FOLDER is an error.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from data_pipelines.builders.leakage import EvaluationImages
from data_pipelines.builders.report import Dropped, Report, read_report
from data_pipelines.builders.samples import BadFile, Content, Sample, Unit
from data_pipelines.errors import InputError, first_few
from data_pipelines.files import is_utf8, read_json, replace_file
from data_pipelines.sources.records import UnreadableError
from data_pipelines.sources.shard_files import Shard, shard_path, write_metadata, write_shard

_PLAN = "preparation.json"
_UNITS = "units"


class Builder(Protocol):
    """The structure of a dataset, a builder of TensorFlow Datasets; see `base.ImageBuilder`."""

    name: str
    version: Any
    info: Any
    data_path: Any

    def example(self, sample: Sample) -> dict[str, Any]:
        """A sample as the features of an example."""
        ...


@dataclasses.dataclass(frozen=True)
class Part:
    """A unit and its position in the dataset.

    Attributes:
        split: Name of the split.
        index: Number of the unit, and of its shard, in the split.
        count: Number of units in the split.
        unit: The unit.
    """

    split: str
    index: int
    count: int
    unit: Unit


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A dataset to prepare.

    Attributes:
        builder: Gives the structure of the examples.
        folder: Folder of the dataset.
        source: Its source (see `base.ImageBuilder.origin`).
        evaluation: Evaluation images whose duplicates are dropped; None: no search.
    """

    builder: Builder
    folder: Path
    source: Mapping[str, str]
    evaluation: EvaluationImages | None = None


class _UnitReport(NamedTuple):
    """The result of a unit: its shard, the files left out, and the digest of each image."""

    shard: Shard
    bad: list[BadFile]
    dropped: list[Dropped]
    digests: list[str]


def begin(preparation: Preparation, units: Mapping[str, Sequence[Unit]]) -> list[Part]:
    """Records the request and finds the unfinished parts.

    Args:
        preparation: The dataset.
        units: The units of each split.

    Returns:
        The unfinished parts.

    Raises:
        InputError: The folder has other contents, or cannot be read or written.
    """
    folder = preparation.folder
    plan = _plan(preparation, units)
    try:
        before = read_json(folder / _PLAN)
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir() and any(path.suffix != ".part" for path in folder.iterdir()):
            raise InputError(f"{folder}: holds files but no {_PLAN}; name another folder or remove it") from None
        _write_json(folder / _PLAN, plan)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / _PLAN}: cannot be read ({error}); remove {folder} to start again") from error
    else:
        if differences := _differences("", before, plan):
            raise InputError(
                f"{folder}: was begun with other units or settings: {first_few(differences, 3)}; use the same again, "
                "or name another folder, or remove this one"
            )
    if read_report(folder) is not None:
        return []
    parts = [Part(split, i, len(found), unit) for split, found in units.items() for i, unit in enumerate(found)]
    return [part for part in parts if _unit_report(preparation, part) is None]


def prepare_part(preparation: Preparation, part: Part) -> None:
    """Writes the shard of a unit, then its result, unless both exist.

    An `InputError` becomes the result, for `finish`, so that the other units go on.
    """
    if _unit_report(preparation, part) is not None:
        return
    path = _shard_path(preparation, part)
    found: dict[str, Any] = {"bad": [], "dropped": [], "sha256": []}
    try:
        shard = write_shard(path, preparation.builder.info.features, _examples(preparation, part.unit, found))
    except InputError as error:
        report: dict[str, Any] = {"fault": str(error)}
    else:
        report = {"ids": shard.ids, "bytes": shard.bytes, "file_bytes": path.stat().st_size, **found}
    _write_json(_unit_report_path(preparation, part), report)


def finish(preparation: Preparation, units: Mapping[str, Sequence[Unit]]) -> Report:
    """Turns the shards of all units into a prepared dataset; or, if they are one already, only reads the report.

    Raises:
        InputError: A unit has a fault or is unfinished, an id is repeated, or a split has no image.
    """
    folder = preparation.folder
    report = read_report(folder) or _finish(preparation, units)
    remove_leftovers(folder)
    return report


def prepare_in_turn(preparation: Preparation, units: Mapping[str, Sequence[Unit]]) -> Report:
    """Prepares the unfinished units, one after the other; raises what `begin` and `finish` raise."""
    parts, total = begin(preparation, units), sum(map(len, units.values()))
    for part in tqdm(parts, preparation.builder.name, total, initial=total - len(parts), unit="shard", disable=None):
        prepare_part(preparation, part)
    return finish(preparation, units)


def finished_report(builder: Builder) -> Report | None:
    """The report of the dataset in the builder's folder; None if it is missing or incomplete."""
    folder = Path(builder.data_path)
    if (folder / _PLAN).exists() or not builder.info.splits:
        return read_report(folder)
    # Earlier versions wrote no report: the number of repeated images is unknown.
    images = {name: split.num_examples for name, split in builder.info.splits.items()}
    try:
        bad = [BadFile(**file) for file in recorded_metadata(builder).get("bad", ())]
    except TypeError as error:
        raise _unreadable(folder, error) from error
    return Report(images, None, bad, [], repeated=None)


def recorded_metadata(builder: Builder) -> dict[str, Any]:
    """The metadata that a dataset was written with; raises `InputError` if it cannot be read."""
    try:
        return dict(builder.info.metadata or {})
    except Exception as error:  # TensorFlow Datasets raises several types for damaged files
        raise _unreadable(Path(builder.data_path), error) from error


def _unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: cannot be read as a prepared dataset ({error}); remove it, or name another --out")


def remove_leftovers(folder: Path) -> None:
    """Removes the files that a complete dataset does not need, and those of killed processes."""
    shutil.rmtree(folder / _UNITS, ignore_errors=True)
    for path in folder.glob("*.part"):
        path.unlink(missing_ok=True)


def _finish(preparation: Preparation, units: Mapping[str, Sequence[Unit]]) -> Report:
    folder, builder = preparation.folder, preparation.builder
    parts = [Part(split, i, len(found), unit) for split, found in units.items() for i, unit in enumerate(found)]
    reports, faults = [], []
    for part in parts:
        if (found := _unit_report(preparation, part)) is None:
            faults.append(_fault(preparation, part))
        else:
            reports.append(found)
    if faults:
        raise InputError(f"{len(faults)} of {len(parts)} unit(s) are not prepared: {first_few(faults)}")
    shards: dict[str, list[Shard]] = {split: [] for split in units}
    bad, dropped, digests = [], [], []
    for part, found in zip(parts, reports, strict=True):
        shards[part.split].append(found.shard)
        bad += found.bad
        dropped += found.dropped
        digests += found.digests
    for split, written in shards.items():
        if not any(shard.ids for shard in written):
            _refuse_empty(split, [*bad, *(BadFile(i.file, f"is the evaluation image {i.evaluation}") for i in dropped)])
        ids = Counter(id_ for shard in written for id_ in shard.ids)
        if len(ids) < (total := sum(ids.values())):
            repeated = [f"{id_} ({count} images)" for id_, count in ids.items() if count > 1]
            raise InputError(
                f"{folder}: {total - len(ids)} id(s) of the split {split!r} are repeated: {first_few(repeated)}; "
                "rename the images, and prepare them in another folder"
            )
    report = Report(
        images={split: sum(len(shard.ids) for shard in written) for split, written in shards.items()},
        evaluation_images=None if preparation.evaluation is None else len(preparation.evaluation.ids),
        bad=bad,
        dropped=dropped,
        repeated=len(digests) - len(set(digests)),
    )
    write_metadata(
        folder,
        builder.name,
        builder.info.features,
        shards,
        version=str(builder.version),
        description=builder.info.description,
        metadata={"source": dict(preparation.source), "bad": [file._asdict() for file in bad]},
    )
    report.write(folder)
    return report


def _refuse_empty(split: str, bad: Sequence[BadFile]) -> None:
    faults = first_few([f"{file.name}: {file.reason}" for file in bad])
    raise InputError(f"the split {split!r} has no image that can be used: {faults or 'its archives are empty'}")


def _examples(preparation: Preparation, unit: Unit, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the examples of a unit, and adds the images left out to `found`."""
    for sample in unit.samples():
        if isinstance(sample, BadFile):
            found["bad"].append(sample)
            continue
        name = f"{unit.name}: {sample.id}"
        if preparation.evaluation is not None:
            try:
                duplicate = preparation.evaluation.duplicate(Content(name, sample.image))
            except UnreadableError as error:
                found["bad"].append(BadFile(name, str(error).removeprefix(f"{name}: ")))
                continue
            if duplicate is not None:
                found["dropped"].append(Dropped(name, *duplicate))
                continue
        found["sha256"].append(hashlib.sha256(sample.image).hexdigest()[:16])
        yield preparation.builder.example(sample)


def _plan(preparation: Preparation, units: Mapping[str, Sequence[Unit]]) -> dict[str, Any]:
    evaluation = preparation.evaluation
    return {
        "dataset": preparation.builder.name,
        "version": str(preparation.builder.version),
        "source": dict(preparation.source),
        "evaluation": evaluation
        and {"images": len(evaluation.ids), "sha256": evaluation.fingerprint, "distance": evaluation.distance},
        "units": {split: [unit.name for unit in found] for split, found in units.items()},
    }


def _differences(key: str, before: Any, now: Any) -> list[str]:
    """The differences of two plain values, each as "KEY was BEFORE, now NOW"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        found = [_differences(f"{key}.{name}" if key else name, before.get(name), now.get(name)) for name in keys]
        return [difference for differences in found for difference in differences]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [difference for i, pair in pairs for difference in _differences(f"{key}[{i}]", *pair)]
    if isinstance(before, list) and isinstance(now, list):
        return [f"{key} had {len(before)} units, now {len(now)}"]
    return [] if before == now else [f"{key} was {before!r}, now {now!r}"]


def _shard_path(preparation: Preparation, part: Part) -> Path:
    return shard_path(preparation.folder, preparation.builder.name, part.split, part.index, part.count)


def _unit_report_path(preparation: Preparation, part: Part) -> Path:
    return preparation.folder / _UNITS / f"{part.split}-{part.index:05d}.json"


def _unit_report(preparation: Preparation, part: Part) -> _UnitReport | None:
    """The result of a unit; None if it is unfinished or damaged, or the size of its shard has changed."""
    try:
        found = read_json(_unit_report_path(preparation, part))
        if found["file_bytes"] != _shard_path(preparation, part).stat().st_size:
            return None
        shard = Shard(tuple(map(_id, found["ids"])), _size(found["bytes"]))
        bad = [BadFile(*map(_text, file)) for file in found["bad"]]
        dropped = [Dropped(_text(a), _text(b), _text(c), _size(distance)) for a, b, c, distance in found["dropped"]]
        return _UnitReport(shard, bad, dropped, list(map(_text, found["sha256"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:  # as the metadata of the dataset can hold
        raise TypeError(f"{value!r} is no size")
    return value


def _id(value: Any) -> str:
    if not is_utf8(_text(value)):
        raise TypeError(f"{value!r} is no id")
    return value


def _text(value: Any) -> str:
    """A text; names of files that were left out may be no UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _fault(preparation: Preparation, part: Part) -> str:
    try:
        return str(read_json(_unit_report_path(preparation, part))["fault"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{part.unit.name}: its shard is missing or incomplete; run the same command again"


def _write_json(path: Path, value: Any) -> None:
    replace_file(path, json.dumps(value, indent=1).encode() + b"\n")
