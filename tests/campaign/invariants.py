"""What must be true after every trial."""

import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from data_pipelines.labels.cache import open_label_cache
from semiovs_jax.weights.keys import flatten
from tests.campaign.processes import Outcome, marked
from tests.campaign.room import shared_memory
from tests.campaign.tasks import LABELS, RUN, SHARDS, STEPS, Task, metrics, saved_steps

# The names of the invariants, which are columns of the table.
STEPS_LOST, DIFFERS, TRACEBACK, LEFT_BEHIND, EXIT_CODE = (
    "steps lost",
    "differs",
    "traceback",
    "left behind",
    "exit code",
)
INVARIANTS = (STEPS_LOST, DIFFERS, TRACEBACK, LEFT_BEHIND, EXIT_CODE)

_TEMPORARY = re.compile(r"\.part$|tmp|\.[0-9a-f]{32}\b")
_GRACE_SECONDS = 10.0  # for processes that end because another one did
# Relative, with another number of devices or processes. Of losses and scores, 4e-6 is seen; of gradient norms 7e-3:
# batch normalization over the two pooled values of a batch of two amplifies rounding.
_ROUNDING, _ROUNDING_OF_GRADIENTS = 1e-4, 2e-2


def traceback_of(outcome: Outcome) -> str | None:
    """The end of the first traceback in what a user sees."""
    text = outcome.out + outcome.err
    start = text.find("Traceback (most recent call last)")
    return None if start < 0 else text[start : start + 3000]


def left_behind(mark: str, folder: Path, task: Task) -> list[str]:
    """Processes, shared memory and temporary files of a trial whose commands have ended."""
    end = time.monotonic() + _GRACE_SECONDS
    while found := [*(f"process {process}: {_name(process)}" for process in marked(mark)), *shared_memory()]:
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    paths = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_relative_to(folder / "tmp")]
    return found + [str(path) for path in paths if _TEMPORARY.search(path.name)]


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "has ended"


def state(task: Task, folder: Path, outcome: Outcome) -> dict[str, Any]:
    """What a finished command leaves, as plain data without times: equal for equal inputs."""
    if task.name == "evaluate":
        return {"table": outcome.out}
    if task.name == "prepare":
        return {"dataset": {str(path.relative_to(folder)): _digest(path) for path in _files(folder / SHARDS)}}
    labels = _labels(folder) if (folder / LABELS).is_dir() else {}
    return {**labels, **(_training(folder) if task.keeps_steps else {})}


def _labels(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / LABELS / "manifest.json").read_text())
    cache = open_label_cache(folder / LABELS)
    ids = sorted(path.stem for path in (folder / "data/shapes/ood/JPEGImages").iterdir())
    if manifest["form"] == "shards":
        ids = sorted((folder / SHARDS / "train.ids.txt").read_text().split())
    planes = {id_: [hashlib.sha256(plane.open().read()).hexdigest() for plane in cache.planes(id_)] for id_ in ids}
    counts = _digest(folder / LABELS / "class_pixels.npz")
    return {"labels": planes, "class pixels": counts, "finished": manifest["finished"], "counts": manifest["pixels"]}


def _training(folder: Path) -> dict[str, Any]:
    step = saved_steps(folder)[-1]
    checkpoint = folder / RUN / "checkpoints" / str(step)
    handler, path = ocp.PyTreeCheckpointHandler(), epath.Path(checkpoint.absolute()) / "state"
    # As numpy arrays: the devices that saved them may be more than there are here.
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
    with ocp.Checkpointer(handler) as reader:
        leaves = flatten(reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=numpy)))
    digest = hashlib.sha256()
    for key in sorted(leaves):
        value = np.asarray(leaves[key])
        digest.update(f"{key} {value.dtype} {value.shape}".encode() + value.tobytes())
    positions = {path.read_text() for path in (checkpoint / "data").iterdir() if path.name.startswith("process_")}
    result = json.loads((folder / RUN / "result.json").read_text())
    return {
        "step": step,
        "leaves": digest.hexdigest(),
        "data position": sorted(positions),
        "metrics": [_timeless(record) for record in metrics(folder)],
        "result": {key: result.get(key) for key in ("best", "last", "steps", "bad_records")},
    }


def counted_as_bad(folder: Path, path: Path) -> bool:
    """Whether the result of a run names a file, or its folder, among the records that it could not read."""
    records = json.loads((folder / RUN / "result.json").read_text())["bad_records"]
    return any(path.stem in record or path.parent.name in record for record in records)


def _timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if "second" not in key}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(expected: Any, found: Any, *, rounding: bool = False, name: str = "") -> list[str]:
    """The places in which two states differ; with `rounding`, numbers may differ a little and digests may differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = [key for key in {**expected, **found} if not (rounding and key == "leaves")]
        pairs = [(f"{name} {key}".strip(), expected.get(key), found.get(key)) for key in keys]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(f"{name}[{index}]", *pair) for index, pair in enumerate(zip(expected, found, strict=True))]
    elif rounding and isinstance(expected, float) and isinstance(found, float):
        bound = _ROUNDING_OF_GRADIENTS if name.endswith("gradient_norm") else _ROUNDING
        is_close = math.isclose(expected, found, rel_tol=bound, abs_tol=_ROUNDING)
        return [] if is_close else [f"{name}: {expected} != {found}"]
    else:
        return [] if expected == found else [f"{name}: {str(expected)[:80]} != {str(found)[:80]}"]
    return [fault for key, *pair in pairs for fault in differences(*pair, rounding=rounding, name=key)]


def restored_step(outcome: Outcome) -> int | None:
    """The step after which a started run continues; 0 for a fresh start, None if it made no step."""
    text = outcome.out + outcome.err
    if found := re.search(r"continues after step ([\d,]+)", text):
        return int(found[1].replace(",", ""))
    return 0 if "a fresh start" in text else None


def unsaved_step(folder: Path) -> str | None:
    """The fault if a run that a signal stopped has logged a step that it did not save."""
    logged = [record["step"] for record in metrics(folder) if record.get("event") == "train"]
    saved = saved_steps(folder)
    if not logged or (saved and saved[-1] >= logged[-1]):
        return None
    return f"stopped after step {logged[-1]} of {STEPS}, newest checkpoint: {saved[-1] if saved else None}"


jax.config.update("jax_platforms", "cpu")
