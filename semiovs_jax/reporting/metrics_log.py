"""metrics.jsonl: one line of JSON for each logged step and each evaluation."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from data_pipelines.files import replace_file

Event = Literal["train", "eval"]


class MetricsLog:
    """An append-only log without gaps or duplicates, even if the run is killed and restarted.

    A line is a JSON object with "step", "event" ("train" or "eval") and the values. A resumed run repeats the steps
    after its checkpoint, so opening the log removes their lines. It also removes an incomplete last line. Values that
    are not finite are written as null.
    """

    def __init__(self, path: Path, after_step: int):
        """Opens the log at `path` for a run that continues after `after_step`."""
        self.path = path
        self.records = [record for record in read_records(path) if record["step"] <= after_step]
        self._written = {(record["event"], record["step"]) for record in self.records}
        replace_file(path, "".join(_line(record) for record in self.records))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Event, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line and flushes it, unless the log already has a line for this event and step."""
        if (event, step) in self._written:
            return
        record = {"step": step, "event": event, **_finite(values)}
        self._file.write(_line(record))
        self._file.flush()
        self._written.add((event, step))
        self.records.append(record)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads a log. A missing file counts as empty; incomplete lines are skipped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and {"step", "event"} <= record.keys():
            records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
