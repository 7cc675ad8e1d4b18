"""Measures the loader on many records in shards: python -m semiovs_jax.benchmarks.endurance.

Writes shards of small OOD photographs and shards of their cached labels. A new process then measures and prints: the
time from its start to the first batch of all four streams, its memory over many batches, and the time that another
loader needs to resume in the middle. The resumed batch must be equal.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

from data_pipelines.command import closed_output_ends
from data_pipelines.datasets import dataset_info
from data_pipelines.labels.examples import encode_label
from data_pipelines.labels.shard_store import ShardStore
from data_pipelines.loading.batches import BatchIterator
from data_pipelines.pipeline import STREAMS
from data_pipelines.sources.shard_files import shard_path, write_metadata, write_shard
from semiovs_jax.benchmarks import photographs
from semiovs_jax.benchmarks.our_streams import data_config, our_batches
from semiovs_jax.runtime.command import tune_process

SIZE = (96, 128)  # of the photographs: height, width
CROP_SIZE, BATCH_SIZE, NUM_THREADS = 64, 4, 2
_DRAWN = 64  # different photographs, which are repeated with other ids


@dataclasses.dataclass(frozen=True)
class Endurance:
    """The measurements.

    Attributes:
        first_batch_seconds: From the start of the process to its first batch, including imports and checks.
        memory: Memory of the process in MiB after each twentieth of the batches.
        restore_seconds: From a saved position to the batch there, in an open loader.
        reopen_seconds: The same, including the time to open the loader.
        equal: Whether that batch equals the batch of the first loader at the same position.
    """

    first_batch_seconds: float
    memory: list[float]
    restore_seconds: float
    reopen_seconds: float
    equal: bool


def write_records(root: Path, records: int, shards: int) -> None:
    """Writes `records` OOD images in `root`/ood and their labels in `root`/ovs, in `shards` shards each.

    The images and labels are those that `photographs.write_photographs` wrote to `root`.
    """
    images = [path.read_bytes() for path in sorted((root / "images").iterdir())]
    ids = [f"{number:07d}" for number in range(records)]
    parts = [part.tolist() for part in np.array_split(ids, shards)]
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "id": tfds.features.Text()})
    written = [
        write_shard(
            shard_path(root / "ood", "endurance", "train", index, shards),
            features,
            ({"id": id_, "image": images[int(id_) % len(images)]} for id_ in part),
        )
        for index, part in enumerate(parts)
    ]
    write_metadata(root / "ood", "endurance", features, {"train": written})
    _write_labels(root, parts)


def measure(root: Path, batches: int, started: float) -> Endurance:
    """Reads batches of the records that `write_records` wrote.

    Args:
      root: as in `write_records`.
      batches: number of batches.
      started: the time at which this process was started, in seconds of `time.time`.
    """
    iterator = _open(root)
    next(iterator)
    first_batch_seconds = time.time() - started
    memory = []
    for number in range(2, batches + 1):
        batch = next(iterator)
        if number == batches // 2:
            middle = batch
        if number % (batches // 20) == 0:
            memory.append(_memory_mib())
    iterator.close()

    start = time.perf_counter()
    other = _open(root)
    opened = time.perf_counter()
    other.set_state({"next_index": batches // 2 - 1})
    batch = next(other)
    end = time.perf_counter()
    other.close()
    equal = all(np.array_equal(batch[name][field], middle[name][field]) for name in STREAMS for field in middle[name])
    return Endurance(first_batch_seconds, memory, end - opened, end - start, equal)


def _open(root: Path) -> BatchIterator:
    config = data_config(root, CROP_SIZE, NUM_THREADS)
    config.ood_root = str(root / "ood")
    return our_batches(config, root / "ovs", BATCH_SIZE, confidence=True)


def _write_labels(root: Path, parts: Sequence[Sequence[str]]) -> None:
    dataset = dataset_info(photographs.DATASET)
    store = ShardStore(root / "ovs", {"fingerprint": "of no model"}, dataset)
    planes = [
        (np.asarray(Image.open(path)), np.asarray(Image.open(root / "confidence" / path.name)))
        for path in sorted((root / "labels").iterdir())
    ]
    store.begin()
    store.assign(parts)
    for index, part in enumerate(parts):
        store.write_part(index, [encode_label(id_, *planes[int(id_) % len(planes)], dataset) for id_ in part], {})
    store.finish([id_ for part in parts for id_ in part], {})


def _memory_mib() -> float:
    """Resident memory of this process (Linux only)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def print_report(found: Endurance, arguments: Any) -> None:
    """Prints the measurements."""
    height, width = SIZE
    print(
        f"{arguments.records} OOD records of {width}x{height} in {arguments.shards} shards, and as many labels; crop "
        f"{CROP_SIZE}, {BATCH_SIZE} images of each stream in a batch, {NUM_THREADS} threads\n"
        f"  start of the process to the first batch    {found.first_batch_seconds:8.2f} s\n"
        f"  memory over {arguments.batches} batches{'':<17} {min(found.memory):8.1f} to {max(found.memory):.1f} MiB, "
        f"ratio {max(found.memory) / min(found.memory):.3f}\n"
        f"  restored in the middle, to its batch       {found.restore_seconds:8.3f} s; with opening the shards "
        f"{found.reopen_seconds:.3f} s; {'the same batch' if found.equal else 'ANOTHER BATCH'}"
    )


def main(argv: Sequence[str]) -> None:
    """Writes the records and prints the report."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    arguments = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs.write_photographs(root, min(_DRAWN, arguments.records), SIZE)
        write_records(root, arguments.records, arguments.shards)
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            found = process.submit(measure, root, arguments.batches, time.time()).result()
    print_report(found, arguments)


if __name__ == "__main__":
    tune_process()
    flags.DEFINE_integer("records", 100_000, "Number of OOD records.", lower_bound=1)
    flags.DEFINE_integer("shards", 100, "Number of shards.", lower_bound=1)
    flags.DEFINE_integer("batches", 10_000, "Number of batches to read.", lower_bound=20)
    with closed_output_ends():
        app.run(main)
