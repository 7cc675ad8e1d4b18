"""Measures predicting beside a loop in PyTorch: python -m semiovs_jax.benchmarks.prediction.

Both sides predict the same images of many sizes with the same network, in turn, each in a process of its own: ours in
batches of few padded shapes, PyTorch image by image. Before, predictions of one image of each size are compared, which
also compiles ours; the time of this is told apart. Decoding and writing images are not measured.

Needs PyTorch (pip install semiovs-jax[bench]). Weights are random, images noise; no file is read.
"""

import itertools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from data_pipelines.command import command_end
from semiovs_jax.benchmarks.turns import Worker, take_turns
from semiovs_jax.runtime.command import tune_process

_WORKER = "semiovs_jax.benchmarks.prediction.worker"
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # on a GPU, ours leaves memory to the other side


def main(argv: Sequence[str]) -> None:
    """Compares, measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    given = flags.FLAGS
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(_WORKER, ["torch"], _ENVIRONMENT) as torch,
        Worker(_WORKER, ["ours"], _ENVIRONMENT) as ours,
    ):
        workers = {"torch": torch, "ours": ours}  # PyTorch makes the weights
        weights = str(Path(folder) / "weights.safetensors")
        for worker in workers.values():
            worker.call("build", weights=weights, backbone=given.backbone, sizes=given.sizes, longest=given.longest)
        files = {side: str(Path(folder) / f"{side}.npz") for side in workers}
        for side, worker in workers.items():
            worker.call("save", count=given.sizes, path=files[side])
        print(compare(np.load(files["torch"]), np.load(files["ours"])), flush=True)
        before = ours.call("compilations")
        rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
        bounds = np.linspace(0, given.images, given.rounds + 1).astype(int).tolist()
        for first, last in itertools.pairwise(bounds):
            for side, found in take_turns(workers, 1, "measure", first=first, last=last).items():
                rounds[side] += found
        compiled = ours.call("compilations")
    print(f"{given.images} images of {given.sizes} sizes up to {given.longest} px, {given.backbone}, float32")
    print(format_rounds(rounds))
    print(f"ours compiled {compiled} programs, {compiled - before} of them during the rounds")


def compare(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> str:
    """By how much the predictions of both sides differ."""
    names = [name for name in ours if name.startswith("label")]
    other = sum(int(np.sum(ours[name] != theirs[name])) for name in names)
    pixels = sum(ours[name].size for name in names)
    planes = [name.replace("label", "confidence") for name in names]
    largest = max(float(np.abs(ours[name] - theirs[name]).max()) for name in planes)
    return f"{len(names)} images: {other} of {pixels} labels differ, confidences by {largest:.1e} at most"


def format_rounds(rounds: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Images a second of each side, their ratios round by round, and the peaks of memory of each round."""
    lines = []
    for side, found in rounds.items():
        rates = [usage["batches"] / usage["seconds"] for usage in found]
        cores = [usage["core_seconds"] / usage["batches"] for usage in found]
        peaks = " ".join(f"{usage['peak_bytes'] / 1e9:.2f}" for usage in found)
        lines.append(
            f"{side:6} {statistics.median(rates):.2f} images/s, {statistics.median(cores):.3f} core-seconds an image, "
            f"peak memory of each round {peaks} GB"
        )
    for unit, words in (("seconds", "by the clock"), ("core_seconds", "a core-second")):
        ratios = [theirs[unit] / ours[unit] for theirs, ours in zip(rounds["torch"], rounds["ours"], strict=True)]
        lines.append(
            f"ours over PyTorch {words}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tune_process()
    flags.DEFINE_integer("images", 1000, "Images in all.", lower_bound=1)
    flags.DEFINE_integer("sizes", 40, "Different sizes.", lower_bound=1)
    flags.DEFINE_integer("longest", 200, "Longest side, in pixels.", lower_bound=32)
    flags.DEFINE_enum("backbone", "resnet50", ["resnet50", "resnet101"], "Of the student, DeepLabV3+.")
    flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1)
    with command_end():
        app.run(main)
