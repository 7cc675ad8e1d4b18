"""Finds, verifies and reads checkpoints.

Orbax saves atomically, but accepts any finished directory as a checkpoint. Here every file has a checksum, which is
written before the commit and verified before anything is restored. Damaged checkpoints, and those with a NaN or an
infinity, are skipped with the reason in the log; a checkpoint of another model is an error.
"""

import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError
from data_pipelines.files import is_remote
from semiovs_jax.checkpoints.staging import readable_item
from semiovs_jax.finite import not_finite
from semiovs_jax.weights.keys import flatten, unflatten

COMMITTED = "commit_success.txt"  # Orbax writes and expects it on Google Cloud Storage

_CHECKSUMS = "checksums.json"
_LISTED = 4  # keys listed per kind of difference

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class _NotFiniteError(Exception):
    """A state with a NaN or an infinity, which earlier versions saved."""


def list_steps(directory: epath.Path) -> list[int]:
    """Steps of the committed checkpoints of a directory, damaged or not, in any order."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit() and is_committed(path)]


def is_committed(step_dir: epath.Path) -> bool:
    """Whether the directory of a step is whole: by its name, or on object storage by a marker, written last."""
    return not is_remote(step_dir) or (step_dir / COMMITTED).exists()


def read_scores(directory: epath.Path) -> dict[int, float]:
    """Maps step to mIoU, for the checkpoints that were evaluated and have a readable meta."""
    scores = {step: read_miou(directory / str(step)) for step in list_steps(directory)}
    return {step: miou for step, miou in scores.items() if miou is not None}


def read_miou(step_dir: epath.Path) -> float | None:
    """The mIoU saved with a checkpoint; None if it was not evaluated or its meta is unreadable."""
    try:
        return read_meta(step_dir)["miou"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, which is reported when it is restored


def read_meta(step_dir: epath.Path) -> dict[str, Any]:
    """The JSON description saved with a checkpoint."""
    return json.loads((step_dir / "meta" / "metadata").read_text())


def read_data_position(step_dir: epath.Path) -> dict[str, Any]:
    """The Grain state of this process, also if another number of processes saved the checkpoint.

    The position is the number of the next batch, which is the same for all processes.

    Raises:
      InputError: another number of processes saved, and their positions differ.
    """
    files = sorted(path for path in (step_dir / "data").iterdir() if path.name.startswith("process_"))
    own = step_dir / "data" / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    if own in files:
        return json.loads(own.read_text())
    positions = [json.loads(path.read_text()) for path in files]
    if not positions or any(position != positions[0] for position in positions):
        raise InputError(
            f"{step_dir}/data: the data positions of {len(files)} processes differ, so {jax.process_count()} processes "
            f"cannot resume; run on {len(files)} processes"
        )
    return positions[0]


def first_whole(directory: epath.Path, steps: Sequence[int | str], load: Callable[[epath.Path], T]) -> tuple[Any, T]:
    """Loads the first undamaged checkpoint of `steps`, and logs why the ones before it are skipped.

    Returns:
      The step and the result of `load`.

    Raises:
      InputError: raised by `load`, or no checkpoint can be restored.
    """
    skipped = []
    for step in steps:
        step_dir = directory / str(step)
        trouble = _verify(step_dir)
        if trouble is None:
            loaded, trouble = _attempt(load, step_dir)
            if trouble is None:
                return step, loaded
        skipped.append(f"{step_dir}: {trouble}")
        _logger.warning("Skipping checkpoint %s: %s", step_dir, trouble)
    raise InputError(
        f"{directory}: no checkpoint can be restored:\n  "
        + "\n  ".join(skipped)
        + f"\nremove {directory} to start from the beginning, or pass another --workdir"
    )


def _attempt(load: Callable[[epath.Path], T], step_dir: epath.Path) -> tuple[Any, str | None]:
    """(result, None), or (None, reason) if any process failed, because all must restore the same checkpoint."""
    result, trouble = None, None
    try:
        result = load(step_dir)
    except InputError:
        raise
    except _NotFiniteError as error:
        trouble = str(error)
    except Exception as error:  # Orbax, TensorStore, JSON and Grain raise errors of their own
        trouble = f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if jax.process_count() > 1:
        whole = multihost_utils.process_allgather(np.array(trouble is None))
        if not whole.all():
            trouble = trouble or f"cannot be read by processes {np.flatnonzero(~whole).tolist()}"
    return result, trouble


def _verify(step_dir: epath.Path) -> str | None:
    """The damage of a checkpoint's files, or None. The first process reads them; all processes get the result."""
    trouble = _find_damage(step_dir) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        damaged = bool(multihost_utils.broadcast_one_to_all(np.array(trouble is not None)))
        if damaged and trouble is None:
            trouble = "is damaged, as process 0 reports"
    return trouble


def load_state(step_dir: epath.Path, target: Any, *, partial: bool = False) -> Any:
    """Reads the arrays of `target` onto its shardings; with `partial` the checkpoint may hold more.

    Raises:
      InputError: the checkpoint lacks arrays of the target, has others, or has them in another shape or dtype.
      _NotFiniteError: they hold a NaN or an infinity.
    """
    handler = ocp.PyTreeCheckpointHandler()
    with readable_item(step_dir, "state") as folder:
        return _load_state(handler, step_dir, folder, target, partial=partial)


def _load_state(
    handler: ocp.PyTreeCheckpointHandler, step_dir: epath.Path, folder: epath.Path, target: Any, *, partial: bool
) -> Any:
    tree = handler.metadata(folder).tree
    saved = {_current(key): leaf for key, leaf in flatten(tree).items()}
    wanted = flatten(target)
    if partial:
        saved = {key: leaf for key, leaf in saved.items() if _root(key) in {_root(other) for other in wanted}}
    if differences := _differences(saved, wanted):
        raise InputError(
            f"{step_dir}: a checkpoint of another model than the config's"
            f" (saved model: {read_meta(step_dir).get('model', 'not described')}):\n  "
            + "\n  ".join(differences)
            + "\npass another --workdir, or the config that started the run"
        )
    # Read with the structure of the checkpoint, in which None and empty nodes may differ from the target's.
    structs = {key: _struct(leaf) for key, leaf in wanted.items()}
    item = _map_keys(lambda key: structs.get(_current(key), ocp.PLACEHOLDER), tree)
    with ocp.Checkpointer(handler) as checkpointer:
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)),
        )
    arrays = {_current(key): array for key, array in flatten(restored).items()}
    state = _map_keys(lambda key: arrays[key], target)
    if parts := not_finite(state):
        raise _NotFiniteError(f"holds a NaN or an infinity in {', '.join(parts)}")
    return state


def saved_structs(step_dir: epath.Path) -> dict[Any, Any]:
    """Shapes and dtypes of a saved state, as nested dicts with the keys of today."""
    with readable_item(step_dir, "state") as folder:
        tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    leaves = {_current(key): leaf for key, leaf in flatten(tree).items()}
    return unflatten({key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in leaves.items()})


def _current(key: str) -> str:
    """The key in today's train state; snapshots were once saved below "bank", before other labelers had a state."""
    return re.sub("^bank/", "labelers/snapshots/", key)


def _map_keys(value: Callable[[str], Any], tree: Any) -> Any:
    """The tree with each leaf replaced by `value` of its "/" path."""
    return jax.tree.unflatten(jax.tree.structure(tree), [value(key) for key in flatten(tree)])


def _root(key: str) -> str:
    """The part of a train state that a key belongs to: its first name, or below "labelers" its first two."""
    names = key.split("/")
    return "/".join(names[: 2 if names[0] == "labelers" else 1])


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line per kind of difference between two flat trees, with a few keys each; empty if they agree."""

    def listed(entries: list[str]) -> str:
        # The optimizer's copies of a parameter differ if the parameter does: list the parameter first.
        entries = sorted(entries, key=lambda entry: entry.startswith("opt_state"))
        more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
        return ", ".join(entries[:_LISTED]) + more

    common = saved.keys() & wanted.keys()
    kinds = {
        "only in the checkpoint": sorted(saved.keys() - wanted.keys()),
        "only in this model": sorted(wanted.keys() - saved.keys()),
        "of another shape": [
            f"{key} {tuple(saved[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in sorted(common)
            if tuple(saved[key].shape) != tuple(wanted[key].shape)
        ],
        "of another dtype": [
            f"{key} {saved[key].dtype} instead of {wanted[key].dtype}"
            for key in sorted(common)
            if saved[key].dtype != wanted[key].dtype
        ],
    }
    return [f"{kind}: {listed(entries)}" for kind, entries in kinds.items() if entries]


def read_checksums(step_dir: epath.Path) -> dict[str, Any]:
    """Size and CRC-32 of every file of a checkpoint, by its path below it."""
    return json.loads((step_dir / _CHECKSUMS).read_text())


def write_checksums(step_dir: epath.Path) -> None:
    """Writes size and CRC-32 of every file of a checkpoint; called before the commit."""
    sums = {str(path.relative_to(step_dir)): _checksum(path) for path in _item_files(step_dir)}
    (step_dir / _CHECKSUMS).write_text(json.dumps(sums, indent=1))


def _find_damage(step_dir: epath.Path) -> str | None:
    missing = [item for item in ("state", "data", "meta") if not (step_dir / item).is_dir()]
    if missing:
        return f"incomplete, {', '.join(missing)} missing"
    checksums = step_dir / _CHECKSUMS
    if not checksums.exists():
        return f"incomplete, {_CHECKSUMS} missing"
    try:
        expected = json.loads(checksums.read_text())
    except ValueError:
        return f"{_CHECKSUMS} is damaged"
    for name, (size, crc) in expected.items():
        path = step_dir / name
        if not path.exists():
            return f"{name} is missing"
        found_size, found_crc = _checksum(path)
        if found_size != size:
            return f"{name} has {found_size} bytes instead of {size}"
        if found_crc != crc:
            return f"{name} is damaged (CRC-32 differs)"
    return None


def _item_files(step_dir: epath.Path) -> Iterator[epath.Path]:
    """Files of the items; Orbax's own files, beside the items, still change at the commit."""
    folders = [path for path in step_dir.iterdir() if path.is_dir()]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                yield path


def _checksum(path: epath.Path) -> tuple[int, int]:
    """(bytes, CRC-32) of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc
