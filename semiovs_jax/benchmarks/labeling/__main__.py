"""Measures the labeling of images beside PyTorch: python -m semiovs_jax.benchmarks.labeling.

SED and MaskCLIP have published sizes and random weights, the same on both sides; the text embeddings are random, too.
Nothing is downloaded. Both sides label the same batch, in turn, each in a process of its own. First their labels are
compared. Without PyTorch (extra `bench`), only this project is measured.

A batch is on the device before the clock starts; decoding and encoding are not measured. With --job_images, a whole
labeling job of this project is measured, too: images a second, and the share of the time for which the device waits.
Models, paths, precisions and batch sizes may be given several times: --batch_size=1 --batch_size=8.

Labels of random weights are meaningless: `semiovs_jax.benchmarks.sed_agreement` compares the labels of SED's paths with
trained weights.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from data_pipelines.command import closed_output_ends
from semiovs_jax.benchmarks.labeling.models import MODELS, PRECISIONS, architecture, patchwork, random_text
from semiovs_jax.benchmarks.labeling.worker import Task
from semiovs_jax.benchmarks.timing import Usage
from semiovs_jax.benchmarks.turns import Worker, WorkerError, take_turns
from semiovs_jax.ovs.vocabulary import load_vocabulary

# Concepts that a pixel keeps, by path of SED. MaskCLIP has the exact path only.
PATHS = {"exact": 0, "fast": 1}

_MODULES = {"ours": "semiovs_jax.benchmarks.labeling.ours", "PyTorch": "semiovs_jax.benchmarks.labeling.pytorch.side"}
# Two processes share the GPU: neither may reserve its memory.
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclasses.dataclass(frozen=True)
class Side:
    """The figures of one side.

    Attributes:
        usages: Cost of the batches of each round.
        first_seconds: Seconds of the first batch, compilation included.
        peaks: Peak memory in bytes of "host" and "device"; None if there is no GPU.
    """

    usages: list[Usage]
    first_seconds: float
    peaks: dict[str, int | None]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The figures of one task.

    Attributes:
        sides: By name: "ours" and, if it is installed, "PyTorch".
        kept: Concepts of an image that were not pruned, on average; None for MaskCLIP.
        alike: Share of pixels with the same label on both sides; None without PyTorch.
        difference: Largest difference of the confidence at a pixel; None without PyTorch.
        job: Result of `measure_job`; None if it was not measured.
    """

    sides: dict[str, Side]
    kept: float | None
    alike: float | None
    difference: float | None
    job: dict[str, float] | None


def write_model(folder: Path, content: dict[str, Any], image_size: int, images: int, *, weights: bool) -> None:
    """Writes the folder of a model, see `labeling.worker`; weights need PyTorch."""
    (folder / "architecture.json").write_text(json.dumps(content), encoding="ascii")
    np.save(folder / "text.npy", random_text(content))
    np.save(folder / "images.npy", patchwork(image_size, images))
    if weights:
        from semiovs_jax.benchmarks.labeling.pytorch.side import write_weights

        write_weights(folder / "weights.safetensors", content)


def compare(
    task: Task, names: Sequence[str], rounds: int, seconds: float, job_images: int, num_threads: int
) -> Comparison:
    """Measures sides of a task in turn.

    Args:
        task: The task.
        names: Of the sides; "ours" is one of them.
        rounds: Number of rounds.
        seconds: Least duration of a turn.
        job_images: Photographs of the labeling job; 0 for no job.
        num_threads: Threads of the job that decode, and as many that encode.

    Raises:
        WorkerError: A side has failed; for instance, memory is too small.
    """
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(_MODULES[name], environment=_ENVIRONMENT)) for name in names}
        first = {name: worker.call("prepare", **dataclasses.asdict(task)) for name, worker in workers.items()}
        alike, difference = _agreement(workers) if len(workers) > 1 else (None, None)
        turns = take_turns(workers, rounds, "measure", seconds=seconds)
        sides = {
            name: Side([Usage(**usage) for usage in turns[name]], first[name], worker.call("peaks"))
            for name, worker in workers.items()
        }
        ours = workers.pop("ours")
        kept = ours.call("kept")
        for other in workers.values():  # gives its memory back before the job
            other.close()
        size = {"images": job_images, "batch_size": task.batch_size, "num_threads": num_threads}
        job = ours.call("job", **size) if job_images else None
        return Comparison(sides, kept, alike, difference, job)


def _agreement(workers: dict[str, Worker]) -> tuple[float, float]:
    """Share of pixels that two workers label alike, and the largest difference of their confidences."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name, worker in workers.items():
            path = f"{folder}/{name}.npz"
            worker.call("label", path=path)
            with np.load(path) as planes:
                found.append((planes["label"], planes["confidence"]))
    (label, confidence), (other_label, other_confidence) = found
    return float(np.mean(label == other_label)), float(np.abs(confidence - other_confidence).max())


def report(found: Comparison, batch_size: int) -> Iterator[str]:
    """Lines of text: medians over rounds, with the least and the most."""
    for name, side in found.sides.items():
        memory = [f"{kind} {count / 1e9:.2f} GB" for kind, count in side.peaks.items() if count is not None]
        rates = _spread([batch_size * usage.per_second for usage in side.usages])
        cores = np.median([1 / usage.per_core_second for usage in side.usages]) / batch_size
        yield (
            f"  {name:<8} {rates} images/s, {cores:.3g} core-seconds an image, peak {', '.join(memory)}, first batch "
            f"in {side.first_seconds:.1f} s"
        )
    if "PyTorch" in found.sides:
        pairs = list(zip(found.sides["ours"].usages, found.sides["PyTorch"].usages, strict=True))
        by_clock = _spread([ours.per_second / other.per_second for ours, other in pairs])
        by_core = _spread([ours.per_core_second / other.per_core_second for ours, other in pairs])
        yield f"  ours over PyTorch: {by_clock} by the clock, {by_core} a core-second"
    if found.alike is not None:
        alike, difference = f"{100 * found.alike:.2f} %", f"{found.difference:.1e}"
        yield f"  labels alike at {alike} of pixels; confidence differs by {difference} at most"
    if found.kept is not None:
        yield f"  {found.kept:.0f} concepts of an image kept"
    if found.job is not None:
        rate, wait = found.job["images_per_second"], 100 * found.job["device_wait"]
        yield f"  labeling job: {rate:.3g} images/s, the device waits {wait:.1f} % of the time"


def _spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def print_model(model: str, folder: Path, arguments: Any) -> None:
    """Measures all tasks of a model and prints them."""
    has_torch = importlib.util.find_spec("torch") is not None
    content = architecture(model, load_vocabulary(arguments.vocabulary))
    write_model(folder, content, arguments.image_size, max(arguments.batch_size), weights=has_torch)
    paths = arguments.path if content["kind"] == "sed" else ["exact"]
    for path, precision, batch_size in itertools.product(paths, arguments.precision, arguments.batch_size):
        task = Task(
            folder=str(folder),
            batch_size=batch_size,
            precision=precision,
            top_k=PATHS[path],
            class_chunk=arguments.class_chunk,
            label_size=(arguments.height, arguments.width),
            compiled=arguments.torch_compile,
            autocast=arguments.torch_autocast,
        )
        print(f"{model}, {path}, {precision}, batches of {batch_size}", flush=True)
        try:
            found = compare(
                task,
                list(_MODULES) if has_torch else ["ours"],
                arguments.rounds,
                arguments.turn_seconds,
                arguments.job_images,
                arguments.num_threads,
            )
        except WorkerError as error:
            lines = str(error).strip().splitlines()
            print("  failed:", *dict.fromkeys((lines[0], lines[-1])), flush=True)
            continue
        print(*report(found, batch_size), sep="\n", flush=True)
    with Worker(_MODULES["ours"], environment=_ENVIRONMENT) as worker:
        task = Task(str(folder), 1, "float32", top_k=0, class_chunk=0, label_size=(1, 1))
        count = worker.call("flops", **dataclasses.asdict(task))
        print(f"{model}, exact: {count / 1e12:.3f} TFLOP an image; device: {worker.call('device')}", flush=True)


def main(argv: Sequence[str]) -> None:
    """Measures all models."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    arguments = flags.FLAGS
    print(
        f"{arguments.image_size} px, vocabulary {arguments.vocabulary}, labels of {arguments.width}x"
        f"{arguments.height}; {arguments.rounds} rounds: median (least to most)"
    )
    for model in arguments.model:
        with tempfile.TemporaryDirectory() as folder:
            print_model(model, Path(folder), arguments)


if __name__ == "__main__":
    flags.DEFINE_multi_enum("model", ["sed-base", "maskclip"], MODELS, "Models of published size.")
    flags.DEFINE_multi_enum("path", list(PATHS), list(PATHS), "Paths of SED.")
    flags.DEFINE_multi_enum("precision", ["float32", "bfloat16"], list(PRECISIONS), "Precisions.")
    flags.DEFINE_multi_integer("batch_size", [1], "Images in a batch.", lower_bound=1)
    flags.DEFINE_string("vocabulary", "voc21", "Name or path of a vocabulary.")
    flags.DEFINE_integer("image_size", 768, "Side of the square input of the image tower.", lower_bound=32)
    flags.DEFINE_integer("height", 375, "Height of the label.", lower_bound=1)
    flags.DEFINE_integer("width", 500, "Width of the label.", lower_bound=1)
    flags.DEFINE_integer("class_chunk", 9, "Concepts that our SED computes at a time; 0 for all.", lower_bound=0)
    flags.DEFINE_bool("torch_compile", False, "Whether PyTorch uses torch.compile.")
    flags.DEFINE_bool("torch_autocast", False, "PyTorch's bfloat16: autocast, or weights in bfloat16, too.")
    flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1)
    flags.DEFINE_float("turn_seconds", 2.0, "Least duration of a turn.", lower_bound=0.0)
    flags.DEFINE_integer("job_images", 0, "Photographs of the labeling job; 0 for no job.", lower_bound=0)
    flags.DEFINE_integer("num_threads", 8, "Threads of the job that decode, and as many that encode.", lower_bound=1)
    with closed_output_ends():
        app.run(main)
