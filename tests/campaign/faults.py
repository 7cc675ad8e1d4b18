"""All faults. A fault is a small object with a row in the table, a task, and `run`, which disturbs a trial once."""

import dataclasses
import io
import itertools
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.sources.records import UnreadableError
from data_pipelines.sources.shards import open_shards
from tests.campaign import invariants
from tests.campaign.processes import Outcome
from tests.campaign.room import file_limit, is_isolated
from tests.campaign.tasks import SHARDS, TASKS
from tests.campaign.trial import DONE, FRESH, HALF, Trial

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT

_AT_ONCE_SECONDS = 20.0  # for a command that got a second signal, on a busy machine


class Fault(Protocol):
    """A disturbance of one run.

    Attributes:
        row: Its row in the table.
        task: Name of the task that it disturbs.
    """

    row: str
    task: str

    def run(self, trial: Trial) -> None:
        """Disturbs the trial once, and goes on with its command until it finishes."""


@dataclasses.dataclass(frozen=True)
class Signal:
    """A signal at a random moment of a phase."""

    task: str
    phase: str
    number: signal.Signals
    twice: bool = False

    @property
    def row(self) -> str:
        return f"{'second ' * self.twice}{self.number.name}, {self.phase}"

    def run(self, trial: Trial) -> None:
        """Signals one process or its group, then goes on."""
        cold = self.phase == "compile"
        trial.enter(FRESH)
        command = trial.start(cold=cold)
        if not trial.reach(command, self.phase, cold=cold):
            trial.compare(trial.end(command))
            trial.verdict = "missed"
            return
        group = self.number is not KILL and trial.random.random() < 0.5
        index = trial.random.randrange(len(command.processes))
        trial.notes.append(f"{self.number.name} to {'the group of ' * group}process {index}")
        command.send(self.number, group=group, index=index)
        if self.twice:
            time.sleep(3 * trial.random.random())  # two within a second count as one
            command.send(self.number, group=group, index=index)
        outcome = trial.end(command, *[_AT_ONCE_SECONDS] * self.twice)
        if outcome.finished:
            trial.compare(outcome)
        elif self.number is not KILL and set(outcome.codes) != {128 + self.number}:
            trial.fail(invariants.EXIT_CODE, f"{outcome.codes} after {self.number.name}: {outcome.err[-1000:]}")
        saves = trial.task.keeps_steps and self.number is not KILL and not self.twice
        if saves and (unsaved := invariants.unsaved_step(trial.folder)):
            trial.fail(invariants.STEPS_LOST, unsaved)
        if not outcome.finished or trial.failures:
            trial.go_on()


@dataclasses.dataclass(frozen=True)
class Target:
    """Files that may be damaged.

    Attributes:
        row: Their row in the table.
        patterns: They match one of these, below the folder of the task.
        spared: A file of the same kind stays whole, so that the command has to finish.
    """

    row: str
    patterns: tuple[str, ...]
    spared: bool = False

    def pick(self, trial: Trial) -> Path:
        """One of the files."""
        found = itertools.chain.from_iterable(trial.folder.glob(pattern) for pattern in self.patterns)
        return trial.random.choice(sorted(path for path in found if path.is_file()))


CHECKPOINT = Target("checkpoint", ("run/checkpoints/*/**/*",), spared=True)
LABEL = Target("label", ("labels/labels/*.png", "labels/confidence/*.png", "labels/*.npz"))
LABEL_SHARD = Target("label shard", ("labels/*.array_record-?????-of-?????", "labels/*.npz"))
LABEL_MANIFEST = Target("label manifest", ("labels/*.json", "labels/*.txt"))
IMAGE_SHARD = Target("image shard", ("shards/*/*/*.array_record-?????-of-?????",))
IMAGE_MANIFEST = Target("image manifest", ("shards/*/*/*.json", "shards/*/*/units/*.json", "shards/*/*/*.txt"))
IMAGE = Target("image", ("data/shapes/JPEGImages/*.jpg",))
OOD_IMAGE = Target("OOD image", ("data/shapes/ood/JPEGImages/*.jpg",))
MASK = Target("mask", ("data/shapes/SegmentationClass/train_00000[0-3].png", "data/shapes/SegmentationClass/val*.png"))
SPLIT = Target("split list", ("data/shapes/splits/*.txt",))
METRICS = Target("metrics log", ("run/metrics.jsonl",))
RECORD = Target("other file of the workdir", ("run/[!m]*.json", "run/*.txt", "run/tensorboard/*"))
WEIGHTS = Target("weights", ("clip.safetensors",))


def damage(content: bytes, way: str, trial: Trial) -> bytes | None:
    """The content after a "flip" of one bit, a "truncation", as "empty" or "missing" (None) file, or as "zeros"."""
    if way == "flip" and content:
        place, bit = trial.random.randrange(len(content)), trial.random.randrange(8)
        trial.notes.append(f"bit {bit} of byte {place} of {len(content)}")
        return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    if way == "truncation" and content:
        length = trial.random.randrange(len(content))
        trial.notes.append(f"{length} of {len(content)} bytes")
        return content[:length]
    if way == "zeros":
        start = trial.random.randrange(max(1, len(content)))
        trial.notes.append(f"zeros from byte {start} of {len(content)}")
        return content[:start] + bytes(len(content) - start)
    return None if way == "missing" else b""


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _is_other_image(before: bytes, after: bytes | None) -> bool:
    """Whether a damaged JPEG is a valid image with other pixels: another input, which nobody can find damaged."""
    if after is None or not before.startswith(b"\xff\xd8"):
        return False
    try:
        pixels = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in (before, after)]
    except Exception:  # decoders raise many types
        return False
    return pixels[0].shape == pixels[1].shape and not np.array_equal(*pixels)


@dataclasses.dataclass(frozen=True)
class Damage:
    """A damaged or missing file, found by a run that continues; or, with a `phase`, by a run that is reading it."""

    task: str
    target: Target
    way: str
    stage: str = HALF
    phase: str = ""

    @property
    def row(self) -> str:
        return f"{self.target.row} {'while running' if self.phase else 'between runs'}"

    def run(self, trial: Trial) -> None:
        """Damages a file. A command that refuses it has to finish once the file is whole again."""
        trial.enter(self.stage)
        command = trial.start() if self.phase else None
        if command and not trial.reach(command, self.phase):
            trial.compare(trial.end(command))
            trial.verdict = "missed"
            return
        path = self.target.pick(trial)
        before = path.read_bytes()
        trial.notes.append(f"{self.way}: {path.relative_to(trial.folder)}")
        after = damage(before, self.way, trial)
        _write(path, after)
        if self.target is CHECKPOINT:
            trial.damaged.add(int(path.relative_to(trial.folder / "run/checkpoints").parts[0].partition(".")[0]))
        if command is None:
            outcome = trial.go_on(may_refuse=not self.target.spared)
        else:
            outcome = trial.end(command)
            if outcome.finished:
                if _read(path) == after:  # compares what the run has written, not the damage
                    path.write_bytes(before)
                trial.compare(outcome)
            elif outcome.refused:
                trial.verdict = "refused"
                trial.notes.append(outcome.err[outcome.err.index("error: ") :][:500])
            else:
                trial.fail(invariants.EXIT_CODE, f"{outcome.codes}: {outcome.err[-1500:]}")
        if outcome.finished and invariants.DIFFERS in trial.failures:
            self._judge_difference(trial, outcome, path, before, after)
        elif not outcome.finished:
            if trial.verdict == "refused" and not _names(outcome, path):
                trial.fail(invariants.EXIT_CODE, f"the message names neither {path.name} nor its folder: {outcome.err}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(before)
            trial.go_on()

    def _judge_difference(self, trial: Trial, outcome: Outcome, path: Path, before: bytes, after: bytes | None) -> None:
        """A difference is right where the damage made another valid image, or where the run reports the damage."""
        if _is_other_image(before, after) or (after is None and self.target is OOD_IMAGE):  # that folder has no list
            trial.verdict = "other input"
        elif self.phase and invariants.counted_as_bad(trial.folder, path):
            trial.verdict = "counted"
        elif trial.task.name == "evaluate" and "Skipping checkpoint" in outcome.err:
            trial.verdict = "refused"
        elif trial.task.name == "prepare":
            records = _records(trial.folder / SHARDS)
            if records is not None and records != _records(trial.campaign.stage(trial.task, DONE) / SHARDS):
                return
            trial.verdict = "refused" if records is None else "equal"  # equal: what has changed is never read
        else:
            return
        trial.notes.append(trial.failures.pop(invariants.DIFFERS))


def _records(folder: Path) -> list[bytes] | None:
    """The images of a prepared dataset; None if damage is found when they are read."""
    try:
        source = open_shards(folder)
        return [source[index].image.read() for index in range(len(source))]
    except (InputError, UnreadableError):
        return None


def _names(outcome: Outcome, path: Path) -> bool:
    """Whether a message names the file, the image it belongs to, or its folder."""
    return path.stem in outcome.err or path.parent.name in outcome.err


@dataclasses.dataclass(frozen=True)
class AllCheckpoints:
    """A damaged file in every checkpoint."""

    task: str
    way: str
    row: str = "all checkpoints between runs"

    def run(self, trial: Trial) -> None:
        """Damages a data file of each checkpoint. A command that refuses them has to finish once they are whole."""
        trial.enter(HALF)
        before = {}
        for folder in sorted((trial.folder / "run/checkpoints").iterdir()):
            if folder.name.isdigit():
                trial.damaged.add(int(folder.name))
                path = trial.random.choice(sorted(path for path in folder.glob("state/**/*") if path.is_file()))
                before[path] = path.read_bytes()
                _write(path, damage(before[path], self.way, trial))
        outcome = trial.go_on(may_refuse=True)
        if not outcome.finished:
            for path, content in before.items():
                path.write_bytes(content)
            trial.damaged.clear()
            trial.go_on()


@dataclasses.dataclass(frozen=True)
class RemovedFolder:
    """A folder of a checkpoint that somebody removes while the command runs."""

    task: str
    row: str = "checkpoint while running"

    def run(self, trial: Trial) -> None:
        """Removes the oldest checkpoint after a step."""
        trial.enter(FRESH)
        command = trial.start()
        if not trial.reach(command, "step"):
            trial.compare(trial.end(command))
            trial.verdict = "missed"
            return
        folders = (trial.folder / "run/checkpoints").iterdir()
        steps = sorted(int(folder.name) for folder in folders if folder.name.isdigit())
        trial.notes.append(f"removes checkpoint {steps[:1]}")
        for step in steps[:1]:
            shutil.rmtree(trial.folder / f"run/checkpoints/{step}", ignore_errors=True)
        outcome = trial.end(command)
        if outcome.finished:
            trial.compare(outcome)
        else:
            trial.fail(invariants.EXIT_CODE, f"{outcome.codes}: {outcome.err[-1500:]}")


@dataclasses.dataclass(frozen=True)
class FullDisk:
    """A disk that is full before the command is done."""

    task: str
    row: str = "disk full"

    def run(self, trial: Trial) -> None:
        """Runs the command on a small disk (or with a limit of the size of files), then makes room and goes on."""
        fresh, done = trial.reference.kilobytes
        share = trial.random.uniform(0.02, 0.95)
        room = int(share * (done - fresh))
        trial.notes.append(f"room for {room} kB" if is_isolated() else f"files of {room // 8} kB at most")
        trial.enter(FRESH, fresh + room)
        outcome = trial.end(trial.start(preexec=file_limit(max(1, room // 8))))
        if outcome.finished:
            trial.compare(outcome)
            trial.verdict = "missed"
            return
        if not outcome.refused:
            trial.fail(invariants.EXIT_CODE, f"{outcome.codes} on a full disk: {outcome.err[-1500:]}")
        trial.campaign.room.make_room()
        trial.go_on()


@dataclasses.dataclass(frozen=True)
class Clock:
    """Files of an unfinished run whose times are years away."""

    task: str
    years: int
    row: str = "clock jump"

    def run(self, trial: Trial) -> None:
        """Changes the times of all files, then goes on."""
        trial.enter(HALF)
        when = time.time() + self.years * 365 * 86400
        for path in [*trial.folder.rglob("*"), trial.folder]:
            os.utime(path, (when, when), follow_symlinks=False)
        trial.notes.append(f"times moved by {self.years} years")
        trial.go_on()


@dataclasses.dataclass(frozen=True)
class Counts:
    """Another number of devices or of processes at each start."""

    task: str
    argument: str
    counts: Sequence[int]

    @property
    def row(self) -> str:
        return f"{self.argument} {' to '.join(map(str, self.counts))}"

    def run(self, trial: Trial) -> None:
        """Stops the run after a step on each number but the last; the last one finishes."""
        trial.enter(FRESH)
        for count in self.counts[:-1]:
            how: dict[str, Any] = {self.argument: count}
            command = trial.start(**how)
            if not trial.reach(command, "step"):
                break
            command.send(TERM, group=False)
            trial.end(command)
        trial.go_on(rounding=True, **{self.argument: self.counts[-1]})


def _all() -> list[Fault]:
    faults: list[Fault] = [
        Signal(task.name, phase, number)
        for task in TASKS.values()
        if task.devices == 1
        for phase in task.phases
        for number in (KILL, TERM, INT)
    ]
    faults += [Signal("supervised", phase, number, twice=True) for phase in ("step", "save") for number in (TERM, INT)]
    between = {
        "supervised": (CHECKPOINT, IMAGE, MASK, SPLIT, METRICS, RECORD),
        "unimatch": (CHECKPOINT, LABEL, LABEL_MANIFEST, OOD_IMAGE, WEIGHTS),
        "unimatch from shards": (LABEL_SHARD, LABEL_MANIFEST, IMAGE_SHARD, IMAGE_MANIFEST),
        "label": (LABEL, LABEL_MANIFEST, OOD_IMAGE),
        "prepare": (IMAGE_SHARD, IMAGE_MANIFEST),
    }
    ways = ("flip", "truncation", "empty", "missing", "zeros")
    faults += [Damage(task, target, way) for task, found in between.items() for target in found for way in ways]
    # Checkpoints are the one promise that has no second copy: more flips.
    faults += [Damage(task, CHECKPOINT, "flip") for task in ("supervised", "unimatch", "unimatch from shards")]
    faults += [Damage("evaluate", CHECKPOINT, way, FRESH) for way in ways]
    faults += [Damage("label shards", LABEL_SHARD, way, DONE) for way in ways]
    running = {
        "supervised": (IMAGE, MASK, SPLIT),
        "unimatch": (LABEL, OOD_IMAGE),
        "unimatch from shards": (IMAGE_SHARD,),
    }
    faults += [
        Damage(task, target, way, HALF, "step")
        for task, found in running.items()
        for target in found
        for way in ("truncation", "missing")
    ]
    faults += [AllCheckpoints("supervised", way) for way in ways]
    faults += [RemovedFolder("supervised")]
    faults += [FullDisk(name) for name in TASKS if name not in ("evaluate", "two processes", "eight devices")]
    faults += [
        Clock(name, years) for name, task in TASKS.items() if task.half and task.devices == 1 for years in (-9, 9)
    ]
    faults += [Counts("eight devices", "devices", (8, 1, 4)), Counts("two processes", "processes", (2, 1, 2))]
    return faults


FAULTS = tuple(_all())
