"""The commands under test, each on a few small images, and the events that show how far a command is."""

import dataclasses
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.shapes.benchmark import write_shapes
from tests.experiment import SPEC
from tests.ovs.tiny_clip import write_clip

STEPS, SAVE_EVERY, EVAL_EVERY = 24, 4, 12

# Below the folder in which the commands run. All paths of the flags are relative to it.
RUN, LABELS, SHARDS, IMAGES = Path("run"), Path("labels"), Path("shards/webdataset_ood/1.0.0"), Path("data/shapes")

_SHARED = {
    "seed": 3,
    "batch_size": 2,
    "data.root": IMAGES,
    "data.ood_root": IMAGES / "ood/JPEGImages",
    "data.make": "",
    "data.crop_size": 33,
    "data.prefetch": 2,
    "ovs.name": "maskclip",
    "ovs.weights": "clip.safetensors",
    "ovs.image_size": 32,
    "ovs.labels_dir": LABELS,
    "ovs.batch_size": 2,
    "train.steps": STEPS,
    "train.log_every_steps": 1,
    "train.eval_every_steps": EVAL_EVERY,
    "train.checkpoint_every_steps": SAVE_EVERY,
    "train.panel_images": 1,
    "eval.batch_size": 2,
    "eval.max_shapes": 1,
}
_SUPERVISED = {"method.name": "supervised", "method.ood": "none"}
# Updates so small that the rounding of another number of devices or processes does not grow from step to step.
_SMALL_UPDATES = {**_SUPERVISED, "optim.learning_rate": 1e-6}
_OOD_SHARDS = {"data.ood_root": SHARDS.parent}

Phase = tuple[str, str]  # the events that begin and end it


@dataclasses.dataclass(frozen=True)
class Task:
    """A command, and what its folder holds before it starts.

    Attributes:
        name: Its name in tables.
        command: The module and its flags.
        before: The task whose finished folder this one starts from; "": images and weights alone.
        phases: What a fault may fall into, each with the events that can begin and end it.
        half: The event at which the folder of an unfinished run is kept.
        observe: The events that a folder shows.
        keeps_steps: Whether the command trains, and so owes its checkpoints.
        processes: How many processes run the command together.
        devices: Simulated devices of each process.
        takes_workers: Whether the number of data workers can be set.
    """

    name: str
    command: tuple[str, ...]
    observe: Callable[[Path], Iterator[str]]
    phases: Mapping[str, tuple[Phase, ...]]
    half: str = ""
    before: str = ""
    keeps_steps: bool = False
    processes: int = 1
    devices: int = 1
    takes_workers: bool = False


def write_inputs(folder: Path) -> None:
    """Writes what every task starts from: images, weights, and tar files of images."""
    write_shapes(folder / IMAGES, SPEC)
    write_clip(folder / "clip.safetensors")
    (folder / "crawl").mkdir()
    images = sorted((folder / IMAGES / "ood/JPEGImages").iterdir())
    for number in range(4):
        with tarfile.open(folder / f"crawl/{number}.tar", "w") as tar:
            for image in images[number::4]:
                tar.add(image, image.name)


def saved_steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending."""
    checkpoints = folder / RUN / "checkpoints"
    return (
        sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.exists() else []
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of the metrics log."""
    path = folder / RUN / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # still being written, or damaged
    return [record for record in records if isinstance(record, dict)]


def _observe_training(folder: Path) -> Iterator[str]:
    yield from _observe_labels(folder)
    run = folder / RUN
    if not (run / "checkpoints").is_dir():
        return
    yield "opened"
    if (run / "summary.txt").exists():
        yield "compiled"
    for path in (run / "checkpoints").iterdir():
        if step := re.match(r"\d+", path.name):
            yield f"saved {step[0]}" if path.name.isdigit() else f"saving {step[0]}"
    for record in metrics(folder):
        yield f"{record.get('event')} {record.get('step')}"


def _observe_labels(folder: Path) -> Iterator[str]:
    if (folder / LABELS / "manifest.json").exists():
        yield "labeling"
    for number, _ in enumerate((folder / LABELS / "labels").glob("*.png"), start=1):
        yield f"label {number}"
    if any(folder.glob(f"{LABELS}/*.array_record-*.json")):
        yield "label 1"
    if (folder / LABELS / "contact_sheet.html").exists():
        yield "labeled"


def _observe_preparation(folder: Path) -> Iterator[str]:
    if (folder / SHARDS).is_dir():
        yield "preparing"
    for number, _ in enumerate((folder / SHARDS).glob("*.array_record-?????-of-?????"), start=1):
        yield f"shard {number}"


def _train(changes: Mapping[str, Any], *more: str) -> tuple[str, ...]:
    return ("semiovs_jax.main", *_flags(changes), f"--workdir={RUN}", *more)


def _flags(changes: Mapping[str, Any]) -> tuple[str, ...]:
    values = {**_SHARED, **changes}
    return ("--config=configs/demo.py", *(f"--config.{key}={value}" for key, value in values.items()))


_INNER_STEPS = [step for step in range(2, STEPS) if step % SAVE_EVERY]
_TRAINING = {
    "start": (("spawned", "opened"),),
    "compile": (("opened", "compiled"),),
    "step": tuple((f"train {step}", f"train {step + 1}") for step in _INNER_STEPS),
    "save": tuple((f"saving {step}", f"saved {step}") for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)),
    "evaluate": tuple((f"train {step}", f"eval {step}") for step in range(EVAL_EVERY, STEPS + 1, EVAL_EVERY)),
    "end": ((f"saved {STEPS}", "ended"),),
}
_LABELING = {
    "start": (("spawned", "labeling"),),
    "label": (("labeling", "label 1"), *((f"label {number}", f"label {number + 1}") for number in range(1, 7))),
    "end": (("label 8", "ended"),),
}
_SHARD_LABELING = {"start": (("spawned", "labeling"),), "label": (("labeling", "label 1"), ("label 1", "ended"))}

_TASKS = (
    Task(
        "supervised",
        _train(_SUPERVISED),
        _observe_training,
        _TRAINING,
        half="train 14",
        keeps_steps=True,
        takes_workers=True,
    ),
    Task(
        "unimatch",
        _train({}),
        _observe_training,
        {**_TRAINING, "start": (("spawned", "labeling"),), "label": _LABELING["label"]},
        half="train 14",
        keeps_steps=True,
        takes_workers=True,
    ),
    Task(
        "two processes",
        _train(_SMALL_UPDATES, "--distributed"),
        _observe_training,
        _TRAINING,
        half="train 14",
        keeps_steps=True,
        processes=2,
    ),
    Task(
        "eight devices",
        _train({**_SMALL_UPDATES, "batch_size": 8}),
        _observe_training,
        _TRAINING,
        half="train 14",
        keeps_steps=True,
        devices=8,
    ),
    Task("label", ("semiovs_jax.label", *_flags({})), _observe_labels, _LABELING, half="label 4"),
    Task(
        "prepare",
        (
            "data_pipelines.prepare",
            "--dataset=webdataset_ood",
            "--source=crawl",
            f"--out={SHARDS.parents[1]}",
        ),
        _observe_preparation,
        {
            "start": (("spawned", "preparing"),),
            "prepare": tuple((f"shard {number}", f"shard {number + 1}") for number in range(1, 4)),
            "end": (("shard 4", "ended"),),
        },
        half="shard 2",
    ),
    Task(
        "label shards",
        ("semiovs_jax.label", *_flags(_OOD_SHARDS)),
        _observe_labels,
        _SHARD_LABELING,
        before="prepare",
        half="labeling",
    ),
    Task(
        "unimatch from shards",
        _train(_OOD_SHARDS),
        _observe_training,
        _TRAINING,
        before="label shards",
        half="train 14",
        keeps_steps=True,
        takes_workers=True,
    ),
    Task(
        "evaluate",
        ("semiovs_jax.evaluate", *_flags(_SUPERVISED), f"--workdir={RUN}"),
        lambda folder: iter(()),
        {"evaluate": (("spawned", "ended"),)},
        before="supervised",
    ),
)
TASKS = {task.name: task for task in _TASKS}
