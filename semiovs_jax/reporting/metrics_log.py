"""metrics.jsonl: one line of JSON for each logged step and each evaluation."""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from semiovs_jax.reporting.log_file import open_log

Event = Literal["train", "eval"]


class MetricsLog:
    """An append-only log without gaps or duplicates, even if the run is killed and restarted.

    A line is a JSON object with "step", "event" ("train" or "eval") and the values. A resumed run repeats the steps
    after its checkpoint, so opening the log removes their lines. It also removes an incomplete last line. Values that
    are not finite are written as null. A checkpoint holds the digest of the lines up to its step.
    """

    def __init__(self, path: Path, after_step: int, digest: Mapping[str, int] | None = None):
        """Opens the log at `path`.

        Args:
          path: the log; created if missing.
          after_step: the step that the run continues after.
          digest: of the lines up to this step, from `digest`; None if it is not known.

        Raises:
          InputError: the lines up to this step are missing or have changed.
        """
        self.path = path
        if digest and digest != _digest(path.read_bytes()[: digest["bytes"]] if path.exists() else b""):
            # Without them, the results would name the best of the later evaluations.
            raise InputError(
                f"{path}: its lines up to step {after_step} are damaged or missing; put the file back, or continue in "
                f"another --workdir with --fork_from={path.parent}"
            )
        self.records = [record for record in read_records(path) if record["step"] <= after_step]
        self._written = {(record["event"], record["step"]) for record in self.records}
        content = b"".join(map(_line, self.records))
        self._digest = _digest(content)
        replace_file(path, content)
        self._file = open_log(path, content)

    def write(self, event: Event, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line, see `open_log`, unless the log already has a line for this event and step."""
        if (event, step) in self._written:
            return
        record = {"step": step, "event": event, **_finite(values)}
        line = _line(record)
        self._file.write(line)
        self._digest = _digest(line, self._digest)
        self._written.add((event, step))
        self.records.append(record)

    def digest(self) -> dict[str, int]:
        """Bytes and CRC-32 of the whole log, which is on disk or uploaded then."""
        self._file.sync()
        return self._digest

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads a log. A missing file counts as empty; incomplete lines are skipped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and {"step", "event"} <= record.keys():
            records.append(record)
    return records


def _digest(content: bytes, before: Mapping[str, int] | None = None) -> dict[str, int]:
    before = before or {"bytes": 0, "crc32": 0}
    return {"bytes": before["bytes"] + len(content), "crc32": zlib.crc32(content, before["crc32"])}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
