"""The weights that our step takes from one in PyTorch, and the file in which they pass from process to process."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semiovs_jax.benchmarks.step.cases import DRAWN_SNAPSHOTS

# Folders of the arrays in the file.
_STUDENT, _SNAPSHOT, _WORDS = "student", "snapshot{}", "words"


@dataclasses.dataclass(frozen=True)
class Words:
    """SemiVL's unit embeddings of words.

    Attributes:
      text: [K, D], of the class names.
      concepts: [C, D], of the concepts of its labels, those of class 0 first.
      concepts_per_class: number of rows of each class.
    """

    text: np.ndarray
    concepts: np.ndarray
    concepts_per_class: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of a step under their published names.

    Attributes:
      student: state dict of the student; None for random weights.
      snapshots: state dicts of PrevMatch's snapshots that label, by slot; without, the student is its snapshot.
      words: of SemiVL; None for random ones.
    """

    student: Mapping[str, np.ndarray] | None = None
    snapshots: Sequence[Mapping[str, np.ndarray]] = ()
    words: Words | None = None


def write_weights(path: Path, step: Any) -> None:
    """Writes the weights of a `pytorch.steps.TorchStep`; of its snapshots, those that label."""
    drawn = step.snapshot_state_dicts()[:DRAWN_SNAPSHOTS]
    folders = {_STUDENT: step.state_dict()}
    folders |= {_SNAPSHOT.format(slot): values for slot, values in enumerate(drawn)}
    arrays = {
        f"{folder}/{name}": value.detach().cpu().numpy()
        for folder, values in folders.items()
        for name, value in values.items()
    }
    if hasattr(step.student, "text"):
        for field in dataclasses.fields(Words):
            value = getattr(step.student, field.name)
            arrays[f"{_WORDS}/{field.name}"] = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    write_arrays(path, arrays)


def read_weights(path: Path) -> Weights:
    """The weights that `write_weights` wrote; random ones if there is no file."""
    if not path.exists():
        return Weights()
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            folder, _, name = key.partition("/")
            found.setdefault(folder, {})[name] = file[key]
    student, words = found.pop(_STUDENT), found.pop(_WORDS, None)
    snapshots = [found[_SNAPSHOT.format(slot)] for slot in range(len(found))]
    if words is None:
        return Weights(student, snapshots)
    return Weights(student, snapshots, Words(**words | {"concepts_per_class": words["concepts_per_class"].tolist()}))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name, for `np.load`."""
    by_name: dict[str, Any] = dict(arrays)  # the stub takes arrays for the flag allow_pickle
    np.savez(path, **by_name)
