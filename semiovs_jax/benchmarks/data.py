"""Measures the cost of the input pipeline and of a PyTorch loader: python -m semiovs_jax.benchmarks.data.

Writes synthetic photographs and prints: the processor time to decode, scale and crop an image; images per second and
core of each stream; batches per second of all four streams; the share of a run for which the device would wait; and the
cost of the views that this project makes on the device and PyTorch's loader on the host. If PyTorch and torchvision are
installed (extra `bench`), their loader for the same streams is measured alternately with ours.

Each measurement runs in its own process, so that threads and imports of one side do not slow the other. Rates per core
divide by the processor time of the process and its workers, so they are valid on a shared machine, too.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from data_pipelines.command import closed_output_ends
from data_pipelines.datasets import dataset_info
from data_pipelines.images import decode, transforms
from data_pipelines.images.resampling import bilinear_window
from data_pipelines.pipeline import STREAMS
from data_pipelines.sources.records import File
from semiovs_jax.benchmarks import photographs
from semiovs_jax.benchmarks.our_streams import CONFIG, data_config, our_batches
from semiovs_jax.benchmarks.timing import Usage, consume, starvation
from semiovs_jax.runtime.command import tune_process
from semiovs_jax.runtime.config_files import load_config

# How often each stage runs for one row of a batch, which has four images and two labels.
_STAGES_OF_A_ROW = {
    "image: read, decode": 4,
    "image: scale, crop, flip": 4,
    "image: pad": 4,
    "label: read, decode, check": 2,
    "label: scale, crop, flip, pad": 2,
}


def stage_milliseconds(root: Path, batch_size: int, crop_size: int, images: int, rounds: int) -> dict[str, float]:
    """Processor time of each stage for one image in one thread, in milliseconds: medians over rounds."""
    config = data_config(root, crop_size, num_threads=1)
    info, rng = dataset_info(config.dataset), np.random.default_rng(0)
    files = {
        kind: [File(root / kind / f"{index:06d}{suffix}") for index in range(images)]
        for kind, suffix in (("images", ".jpg"), ("labels", ".png"))
    }
    decoded = [decode.decode_image(file) for file in files["images"]]
    planes = [decode.decode_label(file, info) for file in files["labels"]]
    drawn = [transforms.draw_geometry(rng, image.shape[:2], crop_size, tuple(config.scale_range)) for image in decoded]

    def scale(index: int) -> np.ndarray:
        view = drawn[index]
        window = transforms.view_window(view, crop_size)
        return bilinear_window(decoded[index], view.size, *window, mirrored=view.flip)

    scaled = [scale(index) for index in range(images)]
    stages: dict[str, Callable[[int], Any]] = {
        "image: read, decode": lambda i: decode.decode_image(files["images"][i]),
        "image: scale, crop, flip": scale,
        "image: pad": lambda i: transforms.pad_view(scaled[i], drawn[i], crop_size, 0),
        "label: read, decode, check": lambda i: decode.decode_label(files["labels"][i], info),
        "label: scale, crop, flip, pad": lambda i: transforms.view_plane(planes[i], drawn[i], crop_size, 255),
    }
    seconds = np.zeros((rounds, len(stages)))
    for number in range(rounds):
        # The allocator keeps freed memory up to the size of the largest block so far; in a loader, that is a batch.
        np.ones((batch_size, crop_size, crop_size, 3), np.uint8)
        for index in range(images):
            for column, stage in enumerate(stages.values()):
                start = time.thread_time()
                stage(index)
                seconds[number, column] += time.thread_time() - start
    return dict(zip(stages, (1e3 / images * np.median(seconds, axis=0)).tolist(), strict=True))


def view_usage(batch: dict[str, Any], batches: int) -> Usage:
    """Cost on this processor of the views that the train step makes: weak, strong, CutMix, normalization."""
    import jax

    from semiovs_jax.methods import make_method
    from semiovs_jax.views import make_views, mixed_views

    method = make_method(load_config(CONFIG).method)

    def views(key: jax.Array, batch: Any) -> Any:
        made = make_views(key, batch, method, ())
        return made.weak, [mixed_views(made, name, method) for name in method.predicted_streams]

    compiled = jax.jit(views).lower(jax.random.key(0), batch).compile()
    on_device = jax.device_put(batch)

    def made() -> Iterator[Any]:
        for key in jax.random.split(jax.random.key(0), batches + 2):
            yield jax.block_until_ready(compiled(key, on_device))

    return consume(made(), batches)


def run_part(part: str, root: Path, arguments: Any) -> dict[str, Any]:
    """Runs one measurement; returns plain data."""
    config = data_config(root, arguments.crop_size, arguments.num_threads)
    side, _, detail = part.partition("/")
    if side == "stages":
        return stage_milliseconds(root, arguments.batch_size, arguments.crop_size, arguments.images, arguments.rounds)
    if side == "views":
        batch = next(our_batches(config, root, arguments.batch_size))
        return dataclasses.asdict(view_usage(batch, arguments.batches))
    if side == "torch":
        from semiovs_jax.benchmarks.torch_streams import torch_batches

        batches = torch_batches(root, arguments.batch_size, arguments.crop_size, arguments.torch_workers, seed=0)
    else:
        streams = STREAMS if detail not in STREAMS else (detail,)
        batches = our_batches(config, root, arguments.batch_size, streams)
    if detail == "starvation":
        steps = [float(ms) / 1e3 for ms in arguments.step_ms]
        return {f"{1e3 * step:g}": starvation(batches, arguments.batches, step) for step in steps}
    return dataclasses.asdict(consume(batches, arguments.batches))


def _measured(part: str, root: Path) -> dict[str, Any]:
    """Calls `run_part` in a new process."""
    command = [sys.executable, "-m", "semiovs_jax.benchmarks.data", *sys.argv[1:], f"--part={part}", f"--root={root}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(found.stdout.splitlines()[-1])


def print_report(root: Path, arguments: Any) -> None:
    """Runs all measurements and prints them."""
    height, width = photographs.SIZE
    length = sum(path.stat().st_size for path in (root / "images").iterdir()) / arguments.images
    print(
        f"{arguments.images} synthetic photographs of {width}x{height}, {length / 1e3:.0f} kB; crop "
        f"{arguments.crop_size}; {arguments.batch_size} images of each stream in a batch; {os.cpu_count()} cores, "
        f"{arguments.num_threads} threads\n{arguments.rounds} rounds of {arguments.batches} batches: median (least to "
        "most)"
    )
    stages = _measured("stages", root)
    print("\nstages, core-ms an image")
    for stage, milliseconds in stages.items():
        print(f"  {stage:<40}{milliseconds:8.2f}")

    print("\nstreams, images a second", flush=True)
    for stream in STREAMS:
        _print_rates(stream, [_usage(f"ours/{stream}", root) for _ in range(arguments.rounds)], arguments.batch_size)

    sides = {"ours": "ours"} | ({"torch": "PyTorch"} if _has_torch() else {})
    found: dict[str, list[Usage]] = {side: [] for side in sides}
    for number in range(arguments.rounds):
        for side in sorted(sides, reverse=number % 2 == 1):
            found[side].append(_usage(side, root))
    print("\nall four streams, batches a second")
    for side, name in sides.items():
        _print_rates(name, found[side])
    pairs = list(zip(found["ours"], found.get("torch", []), strict=False))
    if pairs:
        _print_row("ours over PyTorch, a core", [a.per_core_second / b.per_core_second for a, b in pairs])
        _print_row("ours over PyTorch, by the clock", [a.per_second / b.per_second for a, b in pairs])
    _print_split(stages, found["ours"], arguments.batch_size)

    views = _usage("views", root)
    print(
        "\nweak and strong views, CutMix, normalization: ours are made on the device inside the step, PyTorch's in its "
        "loader (but for CutMix), as above\n"
        f"  {'ours, core-ms a batch on this processor':<40}{1e3 / views.per_core_second:8.0f}"
    )
    if pairs:
        both = [1 / (1 / a.per_core_second + 1 / views.per_core_second) / b.per_core_second for a, b in pairs]
        _print_row("ours with them over PyTorch, a core", both)

    print(
        "\nstarvation: share of the time that a device waits for batches, by the milliseconds of its step", flush=True
    )
    for side, name in sides.items():
        shares = _measured(f"{side}/starvation", root)
        row = "   ".join(f"{step}: {100 * share:.0f} %" for step, share in shares.items())
        print(f"  {name:<43}{row}", flush=True)
    if not pairs:
        print("\nPyTorch's loader was not measured, because torch or torchvision is missing: pip install '.[bench]'")


def _usage(part: str, root: Path) -> Usage:
    return Usage(**_measured(part, root))


def _print_rates(name: str, usages: Sequence[Usage], scale: int = 1) -> None:
    _print_row(f"{name}, a core", [scale * usage.per_core_second for usage in usages])
    _print_row(f"{name}, by the clock", [scale * usage.per_second for usage in usages])


def _print_row(name: str, values: Sequence[float]) -> None:
    print(f"  {name:<40}{np.median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})", flush=True)


def _print_split(stages: dict[str, float], usages: Sequence[Usage], batch_size: int) -> None:
    """Prints the processor time of a batch by stage."""
    split = {name: count * batch_size * stages[name] for name, count in _STAGES_OF_A_ROW.items()}
    whole = 1e3 / float(np.median([usage.per_core_second for usage in usages]))
    print("\nours, core-ms a batch")
    for name, milliseconds in {**split, "drawing, batching, memory": whole - sum(split.values())}.items():
        print(f"  {name:<40}{milliseconds:8.1f}  ({100 * milliseconds / whole:.0f} %)")


def _has_torch() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def main(argv: Sequence[str]) -> None:
    """Writes the photographs and prints the report, or runs the one measurement of `--part`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    arguments = flags.FLAGS
    if arguments.part:
        print(json.dumps(run_part(arguments.part, Path(arguments.root), arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs.write_photographs(root, arguments.images)
        print_report(root, arguments)


if __name__ == "__main__":
    tune_process()
    flags.DEFINE_integer(
        "images", 128, "Number of photographs to write. Every stream reads all of them.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 8, "Images of each stream in a batch.", lower_bound=1)
    flags.DEFINE_integer("crop_size", 321, "Side of the square crop.", lower_bound=1)
    flags.DEFINE_integer("num_threads", os.cpu_count(), "Threads of our loader.", lower_bound=1)
    flags.DEFINE_integer(
        "torch_workers", 1, "Worker processes of each stream's PyTorch loader; the official trainer uses 1."
    )
    flags.DEFINE_integer("batches", 20, "Number of batches in a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Number of measurements of each rate.", lower_bound=1)
    flags.DEFINE_list("step_ms", ["50", "100", "200"], "Step durations for which starvation is measured.")
    flags.DEFINE_string("part", "", "Measure only this and print JSON.")
    flags.DEFINE_string("root", "", "Folder of the photographs, for --part.")
    with closed_output_ends():
        app.run(main)
