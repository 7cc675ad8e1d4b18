"""Labels the OOD images once, before training: python -m semiovs_jax.label --config=configs/voc92.py.

`main` does the same by itself where labels are missing. Killed and started again, it goes on with the images that
have no label yet, and ends with the same bytes as an undisturbed run. To share the work among machines without
JAX's distributed runtime, start one command on each with --process_index and --process_count.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.datasets import load_dataset
from data_pipelines.errors import InputError
from data_pipelines.sources import Record, open_stream
from data_pipelines.worker_notes import BadRecords
from semiovs_jax.contact_sheet import write_contact_sheet
from semiovs_jax.convert.weights import file_sha256
from semiovs_jax.label_job import BadImages, Job
from semiovs_jax.label_store import LabelStore
from semiovs_jax.labelers import OVS
from semiovs_jax.ovs import build_ovs
from semiovs_jax.ovs.model_files import weights_path
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.sharding import make_mesh

_NOT_SETTINGS = ("name", "weights", "vocabulary", "labels", "labels_dir", "batch_size")


class LabelReport(NamedTuple):
    """What one call of `label_images` did.

    Attributes:
      images: images in the whole OOD set.
      labeled: images that this process labeled now.
      finished: whether every image of the set has its label or is bad.
      bad: ids of the images of the whole set that could not be read; empty while not `finished`.
      images_per_second: of the images labeled now, compilation included.
    """

    images: int
    labeled: int
    finished: bool
    bad: tuple[str, ...]
    images_per_second: float


def labels_complete(config: Any, ovs: OVS) -> bool:
    """Whether `config.ovs.labels_dir` holds this model's labels of all OOD images, bad ones aside.

    Raises:
      InputError: it holds labels of another model, vocabulary or setting, or the OOD set cannot be listed.
    """
    store = _store(config, ovs)
    manifest = store.open()
    return manifest is not None and manifest["finished"] and not store.unsettled(_records(config))


def label_images(
    config: Any, ovs: OVS, mesh: Mesh, *, process_index: int | None = None, process_count: int | None = None
) -> LabelReport:
    """Labels every OOD image that has no label yet.

    Images are decoded ahead and prepared by the model in threads, labeled at their own size in batches of
    `config.ovs.batch_size` (rounded up to this process's devices) on at most four compiled shapes, and written
    in threads. A process computes on its own devices of `mesh` alone, so that shares may differ in length. The
    one that completes the set writes manifest and contact sheet.

    Args:
      config: the whole config; its `data` and `ovs` sections are read.
      ovs: the model, as `build_ovs(config.ovs, num_classes)` gives it.
      mesh: devices, along the one axis "data".
      process_index: which share of the images to label; None for JAX's process.
      process_count: number of shares; None for JAX's processes, which wait for each other at the end.

    Raises:
      InputError: labels_dir holds other labels or cannot be written, or more images than
        `config.data.max_bad_records` cannot be read.
    """
    together = process_count is None and jax.process_count() > 1
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if not 0 <= index < count:
        raise InputError(f"process_index {index} of {count}: use 0 to {count - 1}, and give process_count with it")
    info = load_dataset(config.data.dataset)
    store = _store(config, ovs)
    records = _records(config)
    store.begin()
    start = time.perf_counter()
    labeled: set[str] = set()
    histogram = np.zeros(256, np.int64)
    if any(not store.is_labeled(id_) for id_ in records):
        with ThreadPoolExecutor(max(1, config.data.num_threads)) as pool:
            bad = BadImages(store, BadRecords(config.data.max_bad_records))
            job = Job(store, ovs, mesh.local_mesh, config.ovs.batch_size, info.ignore_index, bad, pool)
            try:
                groups = job.groups(list(records.values()))
                labeled, histogram = job.run(groups[index::count], name=f"OVS labels {index + 1}/{count}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    seconds = time.perf_counter() - start
    if together:
        multihost_utils.sync_global_devices("every process has labeled its share")
    finished = not store.unsettled(records)
    unreadable = tuple(id_ for id_ in records if not store.is_labeled(id_)) if finished else ()
    if finished and (index == 0 or not together):
        earlier = store.histogram(id_ for id_ in records if id_ not in labeled and store.is_labeled(id_))
        last_run = {"labeled": len(labeled), "seconds": round(seconds, 1)}
        store.finish(list(records), info.classes, histogram + earlier, last_run)
        write_contact_sheet(store.folder, records.values(), info)
    if together:
        multihost_utils.sync_global_devices("the manifest is finished")
    return LabelReport(len(records), len(labeled), finished, unreadable, len(labeled) / seconds)


def _records(config: Any) -> dict[str, Record]:
    """The OOD images by id, joined to their cached labels, in the order of the set."""
    source = open_stream(config.data, "ood", config.ovs.labels_dir)
    records: dict[str, Record] = {}
    for record in (source[i] for i in range(len(source))):
        first = records.setdefault(record.id, record)
        if first.image != record.image:
            raise InputError(
                f"config.data.ood_root={config.data.ood_root}: {first.image.name} and {record.image.name} have the "
                f"same id {record.id}: their labels would overwrite each other; give each image an id of its own"
            )
    return records


def _store(config: Any, ovs: OVS) -> LabelStore:
    info = load_dataset(config.data.dataset)
    vocabulary = load_vocabulary(config.ovs.vocabulary, templates=config.ovs.get("templates", ""))
    weights = weights_path(config.ovs.weights)
    identity = {
        "fingerprint": ovs.fingerprint,
        "ovs": config.ovs.name,
        "vocabulary": vocabulary.name,
        "vocabulary_sha256": vocabulary.sha256,
        "weights": config.ovs.weights,
        "weights_sha256": file_sha256(weights) if weights.is_file() else "",
        "dataset": info.name,
        **{key: value for key, value in config.ovs.items() if key not in _NOT_SETTINGS},
    }
    return LabelStore(Path(config.ovs.labels_dir), identity, info.palette)


def main(flags: Any) -> None:
    """Labels `flags.config`'s OOD images."""
    config = flags.config
    ovs = build_ovs(config.ovs, load_dataset(config.data.dataset).num_classes)
    report = label_images(
        config, ovs, make_mesh(), process_index=flags.process_index, process_count=flags.process_count
    )
    logging.getLogger(__name__).info(
        "%s: %d of %d images labeled now (%.1f a second), %d bad, %s",
        config.ovs.labels_dir,
        report.labeled,
        report.images,
        report.images_per_second,
        len(report.bad),
        "complete" if report.finished else "other processes are not done yet",
    )


if __name__ == "__main__":
    from absl import flags as absl_flags

    from semiovs_jax.runtime import run_command

    absl_flags.DEFINE_integer("process_index", None, "Which share of the images to label.")
    absl_flags.DEFINE_integer("process_count", None, "Number of shares.")
    run_command(main, needs_workdir=False)
