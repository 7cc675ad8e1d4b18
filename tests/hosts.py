"""The work of one of several processes, with a record of the image files that it opens: see `tests/test_hosts.py`.

    python -m tests.hosts HOST:PORT INDEX COUNT FOLDER CHANGES [STAGE ...]

Labels the OOD images, trains, trains again with a SIGTERM to the last process, continues, and evaluates. Writes what
happened to FOLDER/INDEX.json. With a COUNT of 1, the process joins no other.
"""

import collections
import contextlib
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_place = threading.local()

STAGES = ("label", "train", "stop", "evaluate")
STOP_STEP = 2
_STEP_SECONDS = 0.5  # while the processes find a step to stop after


class _CountedFile(io.FileIO):
    def __init__(self, path: Path, note: Callable[[int], None]):
        super().__init__(path, "rb")
        self._note = note

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self._note(count or 0)
        return count

    def readall(self) -> bytes:
        content = super().readall()
        self._note(len(content))
        return content


class Reads:
    """Files and bytes that a process reads, by purpose: "training", "evaluation", "labeling" or "checks"."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.opened: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def open(self, path: Path) -> io.BufferedReader:
        purpose = getattr(_place, "purpose", "checks")

        def note(count: int) -> None:
            with self._lock:
                self.bytes[purpose] += count

        with self._lock:
            self.opened[purpose][str(path)] += 1
        return io.BufferedReader(_CountedFile(path, note))

    def record(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"opened": {purpose: dict(files) for purpose, files in self.opened.items()}, "bytes": dict(self.bytes)}


@contextlib.contextmanager
def counted() -> Iterator[Reads]:
    """Counts what is read through `sources.records.File` inside of the context."""
    import pytest

    from data_pipelines.pipeline import ValidationRecords, _View
    from data_pipelines.sources.records import File
    from semiovs_jax.ovs.labeling.job import Job

    def for_purpose(purpose: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            before, _place.purpose = getattr(_place, "purpose", "checks"), purpose
            try:
                return function(*arguments, **options)
            finally:
                _place.purpose = before

        return run

    reads = Reads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(File, "open", lambda file: reads.open(file.path))
        patch.setattr(_View, "random_map", for_purpose("training", _View.random_map))
        patch.setattr(ValidationRecords, "__getitem__", for_purpose("evaluation", ValidationRecords.__getitem__))
        patch.setattr(Job, "_decode", for_purpose("labeling", Job._decode))
        yield reads


def work(folder: Path, changes: dict[str, Any], stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """Works with the processes that JAX has joined, or alone; returns what happened."""
    import jax
    import pytest

    from data_pipelines.signals import Stopped
    from semiovs_jax import train
    from semiovs_jax.evaluation.evaluator import Evaluator
    from semiovs_jax.ood_labels import label_ood_images
    from semiovs_jax.reporting.evaluation_report import evaluate_checkpoint, open_checkpoint
    from semiovs_jax.runtime.preemption import Preemption
    from semiovs_jax.runtime.sharding import make_mesh
    from tests.experiment import shrunk_demo

    config = shrunk_demo(folder, **changes)
    result: dict[str, Any] = {}
    found: list[Any] = []
    run_by_image, reached = Evaluator.run_by_image, Preemption.reached

    def kept(self: Evaluator, *weights: Any) -> Any:
        found.append(run_by_image(self, *weights))
        return found[-1]

    def terminated(self: Preemption, step: int) -> bool:
        if step == STOP_STEP and jax.process_index() == jax.process_count() - 1:
            signal.raise_signal(signal.SIGTERM)
        time.sleep(_STEP_SECONDS)
        return reached(self, step)

    if "label" in stages:
        with counted() as reads:
            result["labels"] = label_ood_images(config, make_mesh())._asdict() | reads.record()
    if "train" in stages:
        with counted() as reads, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Evaluator, "run_by_image", kept)
            train.train_and_evaluate(config, folder / "whole")
            result["whole"] = reads.record()
        scores = found[-1][1]
        result["by_image"] = {"label_pixels": scores.label_pixels.tolist(), "miou": scores.miou.tolist()}
    if "stop" in stages:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Preemption, "reached", terminated)
            try:
                train.train_and_evaluate(config, folder / "stopped")
            except Stopped as error:
                result["stopped"] = [error.where, error.code, error.together]
        train.train_and_evaluate(config, folder / "stopped")
    if "evaluate" in stages:
        with counted() as reads:
            record = evaluate_checkpoint(open_checkpoint(config, folder / "whole", "latest")).record()
            result["evaluated"] = {"miou": record["miou"]} | reads.record()
    return result


def main(address: str, index: str, count: str, folder: str, changes: str, *stages: str) -> None:
    """Joins the processes, works, and writes the result."""
    from data_pipelines.command import command_end
    from semiovs_jax.runtime.agreement import check_agreement
    from semiovs_jax.runtime.processes import EndTogether, join_processes
    from tests.experiment import shrunk_demo

    def write_result() -> None:
        result = work(Path(folder), json.loads(changes), stages or STAGES)
        (Path(folder) / f"{index}.json").write_text(json.dumps(result))

    if int(count) == 1:
        write_result()
        return
    with command_end() as before_leaving:
        join_processes(address, int(index), int(count))
        with EndTogether("kept") as processes:
            before_leaving.append(processes.stop)
            check_agreement(shrunk_demo(Path(folder), **json.loads(changes)))
            write_result()


if __name__ == "__main__":
    main(*sys.argv[1:])
