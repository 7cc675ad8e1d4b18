"""The report of `check_data` as text and as JSON."""

import dataclasses
import json
from collections.abc import Iterator, Sequence

from data_pipelines.checking.survey import SplitReport
from data_pipelines.datasets import DatasetInfo
from semiovs_jax.config_checks import Inspection


def format_report(report: Inspection) -> str:
    """The report as text: facts, then warnings, then faults, then the verdict in a line of its own."""
    return "\n".join(_lines(report))


def _lines(report: Inspection) -> Iterator[str]:
    data = report.report
    if report.dataset:
        yield f"{report.dataset.name}: {report.dataset.num_classes} classes, ignore index {report.dataset.ignore_index}"
    if data.splits:
        yield ""
        yield from _split_table(data.splits)
    if labeled := {split: found for split, found in data.splits.items() if found.labels}:
        yield ""
        yield from _value_table(labeled, report.dataset)
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


def _facts(report: Inspection) -> Iterator[str]:
    data = report.report
    for split, found in data.splits.items():
        if found.labels is not None:
            yield f"{split} labels: {_kinds(found.labels) or 'none that can be read'}"
        if found.unread_labels:
            yield f"{split}: its list names {found.unread_labels} labels, which are not read"
        if found.turned_images or found.turned_labels:
            yield (
                f"{split}: {found.turned_images} image(s) and {found.turned_labels} label(s) carry an EXIF "
                "orientation, which is applied"
            )
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


def report_as_json(report: Inspection) -> str:
    """The report as JSON: the content of the text, with every shared id and an example of every value."""
    data = report.report
    content = {
        "usable": not report.faults,
        "faults": report.faults,
        "warnings": report.warnings,
        "classes": report.dataset.classes if report.dataset else None,
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
