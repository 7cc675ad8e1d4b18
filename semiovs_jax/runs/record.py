"""The record of a run in its workdir: what it is made of, and the starts that it took.

WORKDIR/config.json  the config of the last start, every value
WORKDIR/run.json     its length, digests of data and weights, the checkpoint that it was forked from, and its starts:
config hash, package versions, git revision and devices
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.files import replace_file
from semiovs_jax.runs.changes import Run
from semiovs_jax.runtime.provenance import config_sha256, device_facts, git_revision, package_versions

CONFIG, RECORD = "config.json", "run.json"

_REMEDY = "choose a --workdir you may write to"


@dataclasses.dataclass(frozen=True)
class Record:
    """What a workdir belongs to.

    Attributes:
      run: what another start is compared with.
      forked_from: "checkpoint" (a path), "step" and "config_sha256" of the run that this one continues; None for a run
        of its own.
      starts: facts of each start that differed from the one before: "after_step", "config_sha256", "versions",
        "git_revision", "devices", and "changed", the config keys that differed as [old, new].
    """

    run: Run
    forked_from: Mapping[str, Any] | None = None
    starts: tuple[Mapping[str, Any], ...] = ()

    def facts(self) -> dict[str, Any]:
        """The entries of result.json: those of the last start, then what is common to all, then earlier starts."""
        *earlier, last = self.starts
        kept = {key: last[key] for key in ("config_sha256", "versions", "git_revision", "devices")}
        return {
            **kept,
            "digests": dict(self.run.digests),
            "forked_from": self.forked_from,
            "earlier_starts": list(earlier),
        }

    def started(self, after_step: int, changed: Mapping[str, tuple[Any, Any]]) -> "Record":
        """The record with a start of now, unless nothing differs from the last one."""
        facts = {
            "config_sha256": config_sha256(dict(self.run.config)),
            "versions": package_versions(),
            "git_revision": git_revision(),
            "devices": device_facts(),
        }
        if self.starts and facts.items() <= self.starts[-1].items():
            return self
        start = {"after_step": after_step, **facts, "changed": {key: list(pair) for key, pair in changed.items()}}
        return dataclasses.replace(self, starts=(*self.starts, start))

    def write(self, workdir: Path) -> None:
        """Writes both files; raises `InputError` if they cannot be written."""
        content = {
            "steps": self.run.steps,
            "steps_per_epoch": self.run.steps_per_epoch,
            "digests": dict(self.run.digests),
            "forked_from": self.forked_from,
            "starts": list(self.starts),
        }
        replace_file(workdir / CONFIG, json.dumps(self.run.config, indent=2) + "\n", remedy=_REMEDY)
        replace_file(workdir / RECORD, json.dumps(content, indent=2) + "\n", remedy=_REMEDY)


def read_record(workdir: Path) -> Record | None:
    """Reads both files of a workdir; None if one is missing: an earlier version made it, or its start was cut short.

    Raises:
      InputError: a file is damaged.
    """
    config, content = _read(workdir / CONFIG), _read(workdir / RECORD)
    if config is None or content is None:
        return None
    try:
        run = Run(config, content["digests"], content["steps_per_epoch"])
        return Record(run, content["forked_from"], tuple(content["starts"]))
    except KeyError as error:
        raise InputError(f"{workdir / RECORD}: has no {error}; remove the file, or use another --workdir") from error


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove the file, or use another --workdir") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no JSON object; remove the file, or use another --workdir")
    return content
