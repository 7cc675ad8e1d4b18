"""Measures a whole labeling job, and the share of its time for which the device waits for work."""

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax

from data_pipelines.datasets import dataset_info
from data_pipelines.labels.open_store import open_store
from data_pipelines.loading.streams import open_config_split
from data_pipelines.loading.worker_log import BadRecords
from semiovs_jax.benchmarks import photographs
from semiovs_jax.benchmarks.our_streams import data_config
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.labeling.job import Job
from semiovs_jax.runtime.sharding import make_mesh

T = TypeVar("T")


class DeviceClock:
    """Measures for how long a device has no batch to compute, from the end of its first batch to that of its last one.

    A thread waits for every batch. It may notice the end of a batch late, by the time that a thread needs to wake up.

    Args:
      wait: Waits for the outputs of a batch.
    """

    def __init__(self, wait: Callable[[Any], object] = jax.block_until_ready):
        self._wait = wait
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self._queued = 0
        self._start = self._end = self._waited = 0.0

    def call(self, compute: Callable[[], T]) -> T:
        """Calls `compute`, which queues a batch, and may block until it is computed; returns its outputs."""
        with self._lock:
            if self._end and not self._queued:
                self._waited += time.perf_counter() - self._end
            self._queued += 1
        outputs = compute()
        self._pool.submit(self._finish, outputs)
        return outputs

    def _finish(self, outputs: Any) -> None:
        self._wait(outputs)
        with self._lock:
            self._queued -= 1
            self._end = time.perf_counter()
            self._start = self._start or self._end

    def stop(self) -> tuple[float, float]:
        """Waits for the last of two or more batches; returns seconds in all, and the share of them without a batch."""
        self._pool.shutdown()
        seconds = self._end - self._start
        return seconds, self._waited / seconds


@dataclasses.dataclass(frozen=True)
class _WatchedJob(Job):
    clock: DeviceClock = dataclasses.field(kw_only=True)

    def _label_function(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        label = super()._label_function()
        return lambda *arrays, canvas: self.clock.call(lambda: label(*arrays, canvas=canvas))


def measure_job(ovs: OVS, images: int, batch_size: int, num_threads: int) -> dict[str, float]:
    """Labels photographs of one size from files into shards.

    Args:
      ovs: A model with the classes of `photographs.DATASET`.
      images: Number of photographs, more than `batch_size`: the first batch, and compilation, are not counted.
      batch_size: Images in a batch.
      num_threads: Threads that decode, and as many that encode.

    Returns:
      "images_per_second", and "device_wait", the share of the time in which the device has no batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        photographs.write_photographs(root, images)
        source = open_config_split(data_config(root, crop_size=0, num_threads=num_threads), "ood")
        store = open_store(root / "ovs", {"fingerprint": ""}, dataset_info(photographs.DATASET), prepared=True)
        store.begin()
        clock = DeviceClock()
        job = _WatchedJob(store, ovs, make_mesh(jax.devices()[:1]), batch_size, num_threads, BadRecords(0), clock=clock)
        labeled = job.run(job.parts([source[index] for index in range(len(source))]), name="OVS labels")
        seconds, device_wait = clock.stop()
    return {"images_per_second": (labeled - job.rows) / seconds, "device_wait": device_wait}
