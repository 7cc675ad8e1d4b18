"""The table of a campaign."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

VERDICTS = {
    "equal": "finished equal",
    "refused": "refused or warned",
    "counted": "counted as bad",
    "other input": "other input",
    "missed": "too late",
}


def format_table(results: Iterable[Mapping[str, Any]], invariants: Iterable[str]) -> str:
    """Formats the results: a row for each kind of fault, with trials, verdicts, and failures by invariant.

    Args:
        results: The results; each has "row", "verdict" and "failures".
        invariants: The invariants, in the order of their columns.
    """
    columns = ["trials", *VERDICTS.values(), *invariants]
    rows: dict[str, Counter[str]] = {}
    for result in results:
        counts = rows.setdefault(result["row"], Counter())
        counts["trials"] += 1
        counts.update(result["failures"].keys())
        if not result["failures"]:
            counts[VERDICTS[result["verdict"]]] += 1
    total = sum(rows.values(), Counter())
    lines = [[name, *(str(counts[column] or "") for column in columns)] for name, counts in sorted(rows.items())]
    lines = [["fault", *columns], *lines, ["all", *(str(total[column]) for column in columns)]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])
