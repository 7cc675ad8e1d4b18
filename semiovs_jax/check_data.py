"""Says what a run's data are and what to mend: python -m semiovs_jax.check_data --config=configs/custom.py.

Looks at all splits and labels, the vocabulary and cached OVS labels; trains nothing and writes nothing, save the report
as JSON with --json=PATH. The last line is "usable", with status 0, or "N fault(s)", with status 1. Faults are what
training refuses, and a vocabulary whose classes stand elsewhere than the dataset's. A config that cannot be read gives
status 2.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.checking.report import DataReport, SplitReport, report_data
from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from data_pipelines.labels.cache import LabelCache, open_label_cache, unsettled
from semiovs_jax.ovs.vocabulary import Vocabulary, load_vocabulary

_SECTIONS = ("data", "method", "ovs")


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything the command says.

    Attributes:
      data: what the splits hold.
      vocabularies: the words that the method reads, by the section of the config that names them; those that can
        be read.
      cached: number of OOD images by what is known of their cached OVS label ("labeled", "bad", "missing"); empty
        where the method reads none or the images cannot be listed.
      faults: what forbids a run, each with what to do about it.
      warnings: what is allowed but worth a look.
    """

    data: DataReport
    vocabularies: dict[str, Vocabulary]
    cached: dict[str, int]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]


def make_report(config: Any) -> Report:
    """Looks at everything that the config's method reads, whatever is wrong with the rest.

    Args:
      config: the whole config; its `data`, `method` and `ovs` sections are read.

    Raises:
      InputError: the config has no such sections.
    """
    if lacking := [section for section in _SECTIONS if section not in config]:
        raise InputError(f"--config has no section {', '.join(lacking)}; name an experiment, such as configs/custom.py")
    data = report_data(config)
    vocabularies, faults, warnings = {}, [], []
    for section in _vocabulary_sections(config.method):
        try:
            vocabularies[section] = _read_vocabulary(config[section], data.dataset)
        except InputError as error:
            faults.append(f"config.{section}.vocabulary: {error}".replace("\n  ", " "))
    if data.dataset:
        for vocabulary in vocabularies.values():
            faults += _moved_classes(vocabulary, data.dataset)
            warnings += _renamed_classes(vocabulary, data.dataset)
    cached: dict[str, int] = {}
    if data.ood_ids and config.method.ood == "ovs" and config.ovs.labels == "cached":
        try:
            cache = open_label_cache(Path(config.ovs.labels_dir))
            cached = _count_cached(cache, data.ood_ids)
            faults += cache.faults()
        except InputError as error:
            faults.append(str(error))
    return Report(data, vocabularies, cached, (*data.faults, *faults), (*data.warnings, *warnings))


def _vocabulary_sections(method: Any) -> list[str]:
    """Sections of the config whose vocabulary the method reads."""
    return ["ovs"] * (method.ood == "ovs") + ["clip"] * (method.name == "semivl")


def _read_vocabulary(config: Any, dataset: DatasetInfo | None) -> Vocabulary:
    num_classes = dataset.num_classes if dataset else None
    return load_vocabulary(config.vocabulary, num_classes, templates=config.get("templates", ""))


def _moved_classes(vocabulary: Vocabulary, dataset: DatasetInfo) -> list[str]:
    """A class's place is its label: names of the dataset in other places label its classes as one another."""
    places = {_letters(name): index for index, name in enumerate(dataset.classes)}
    moved = [
        f"class {index} is {name!r}, in the dataset {dataset.classes[index]!r}"
        for index, name in enumerate(vocabulary.classes)
        if places.get(_letters(name), index) != index
    ]
    if not moved:
        return []
    return [
        f"{vocabulary.origin}: {len(moved)} class(es) stand where {dataset.name} has others: {first_few(moved)}; write "
        "the classes in the dataset's order, or the OVS labels one as the other"
    ]


def _renamed_classes(vocabulary: Vocabulary, dataset: DatasetInfo) -> list[str]:
    known = set(map(_letters, dataset.classes))
    renamed = [
        f"class {index} is {name!r}, in the dataset {dataset.classes[index]!r}"
        for index, name in enumerate(vocabulary.classes)
        if _letters(name) not in known
    ]
    if not renamed:
        return []
    return [
        f"{vocabulary.origin}: {len(renamed)} class(es) have names that {dataset.name} has not: {first_few(renamed)}; "
        "make sure that both mean the same"
    ]


def _letters(name: str) -> str:
    """What "dining table", "diningtable" and "Dining-Table" have in common."""
    return "".join(filter(str.isalnum, name.lower())) or name


def _count_cached(cache: LabelCache, ood_ids: Sequence[str]) -> dict[str, int]:
    labeled, missing = sum(map(cache.is_labeled, ood_ids)), len(unsettled(cache, ood_ids))
    return {"labeled": labeled, "bad": len(ood_ids) - labeled - missing, "missing": missing}


def format_report(report: Report) -> str:
    """The report as text: facts, then warnings, then faults, then the verdict in a line of its own."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    data = report.data
    if data.dataset:
        yield f"{data.dataset.name}: {data.dataset.num_classes} classes, ignore index {data.dataset.ignore_index}"
    if data.splits:
        yield ""
        yield from _split_table(data.splits)
    if labeled := {split: found for split, found in data.splits.items() if found.labels}:
        yield ""
        yield from _value_table(labeled, data.dataset)
    yield ""
    yield from _facts(report)
    for title, messages in (("warnings", report.warnings), ("faults", report.faults)):
        if messages:
            yield from ("", title, *(f"  {message}" for message in messages))
    yield ""
    count = len(report.faults)
    yield f"{count} fault{'s' if count > 1 else ''}" if count else "usable"


def _split_table(splits: dict[str, SplitReport]) -> Iterator[str]:
    rows = [["split", "records", "unreadable", "smallest", "median", "largest", "images"]]
    for split, found in splits.items():
        sizes = [f"{width}x{height}" for width, height in found.sizes] or ["-"] * 3
        rows.append([split, str(found.records), str(found.unreadable), *sizes, _kinds(found.images)])
    return _table(rows)


def _value_table(splits: dict[str, SplitReport], dataset: DatasetInfo | None) -> Iterator[str]:
    """Every class and every other value that occurs: labels that hold it and its share of all pixels, by split."""
    names = dict(enumerate(dataset.classes)) if dataset else {}
    if dataset:
        names[dataset.ignore_index] = "(ignored)"
    present = {value for found in splits.values() for value in found.values}
    rows = [["value", *(cell for split in splits for cell in (f"{split} labels", "pixels")), "class"]]
    totals = {split: sum(count.pixels for count in found.values.values()) for split, found in splits.items()}
    for value in sorted(names.keys() | present):
        row, example = [str(value)], ""
        for split, found in splits.items():
            count = found.values.get(value)
            row += [str(count.images), f"{100 * count.pixels / totals[split]:.2f} %"] if count else ["-", "-"]
            example = example or (count.example if count else "")
        rows.append([*row, names.get(value, f"(no class) {example}" if names else example)])
    return _table(rows)


def _facts(report: Report) -> Iterator[str]:
    data = report.data
    for split, found in data.splits.items():
        if found.labels is not None:
            yield f"{split} labels: {_kinds(found.labels) or 'none that can be read'}"
    if data.overlaps:
        yield f"ids shared by {', '.join(f'{pair} {len(ids)}' for pair, ids in data.overlaps.items())}"
    if data.duplicates:
        yield f"bytes of a val image in {', '.join(f'{split} {len(p)}' for split, p in data.duplicates.items())}"
    for section, words in report.vocabularies.items():
        names = sum(len(concept.synonyms) for concept in words.concepts)
        yield (
            f"{section} vocabulary {words.name}: {len(words.classes)} classes, {len(words.concepts)} concepts, "
            f"{names} names, {len(words.templates)} template(s), {names * len(words.templates)} prompts"
        )
    if report.cached:
        yield f"cached OVS labels: {', '.join(f'{count} {state}' for state, count in report.cached.items())}"


def _kinds(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width, numbers to the right, the first and the last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *middle, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells, last])


def report_as_json(report: Report) -> str:
    """The report as JSON: what the text says, with every shared id and the example of every value."""
    data = report.data
    content = {
        "usable": not report.faults,
        "faults": report.faults,
        "warnings": report.warnings,
        "classes": data.dataset.classes if data.dataset else None,
        "splits": {split: dataclasses.asdict(found) for split, found in data.splits.items()},
        "overlaps": data.overlaps,
        "duplicates": data.duplicates,
        "vocabularies": {
            section: {"name": words.name, "classes": words.classes, "sha256": words.sha256}
            for section, words in report.vocabularies.items()
        },
        "cached": report.cached,
    }
    return json.dumps(content, indent=2) + "\n"


def main(flags: Any) -> None:
    """Reports on `flags.config`; ends with status 1 where something is to be mended."""
    report = make_report(flags.config)
    print(format_report(report))
    if flags.json:
        try:
            Path(flags.json).write_text(report_as_json(report), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json={flags.json}: cannot be written ({error.strerror or error})") from error
    if report.faults:
        sys.exit(1)


if __name__ == "__main__":
    from absl import flags as absl_flags

    from semiovs_jax.runtime.command import run_command

    absl_flags.DEFINE_string("json", "", "File to write the report to as JSON.")
    run_command(main, needs_workdir=False)
