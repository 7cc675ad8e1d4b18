"""metrics.jsonl: one line of JSON for each logged step and each evaluation."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from data_pipelines.files import replace_file

Event = Literal["train", "eval"]


class MetricsLog:
    """An append-only log that survives kills and restarts without a gap or a duplicate.

    A line is a JSON object with "step", "event" ("train" or "eval") and the values. Opening the log to continue
    after a step drops the lines of later steps, which the run is about to take again, and a last line that a kill
    left unfinished. Values that are not finite are written as null.
    """

    def __init__(self, path: Path, after_step: int):
        """Opens the log at `path` for a run that has done `after_step` steps."""
        self.path = path
        self.records = [record for record in read_records(path) if record["step"] <= after_step]
        self._written = {(record["event"], record["step"]) for record in self.records}
        replace_file(path, "".join(_line(record) for record in self.records))
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Event, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line and flushes it; what the log already holds of this event and step stays."""
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
    """Reads a log; a missing file is an empty one, an unfinished line is left out."""
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
