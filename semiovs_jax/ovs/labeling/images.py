"""Labels every OOD image once with an OVS, and caches the labels in a folder."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.errors import InputError, first_few
from data_pipelines.labels.cache import LabeledSource, open_label_cache, unsettled
from data_pipelines.labels.store import LabelStore
from data_pipelines.loading.worker_log import BadRecords
from data_pipelines.sources.records import Record, Source
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.labeling.contact_sheet import write_contact_sheet
from semiovs_jax.ovs.labeling.job import Job


class LabelReport(NamedTuple):
    """Result of one call of `label_images`.

    Attributes:
      images: images in the whole OOD set.
      labeled: images that this process labeled now.
      finished: whether every image of the set has a label or is bad.
      bad: ids of the unreadable images of the whole set; empty while not `finished`.
      images_per_second: of the images labeled now, compilation included.
    """

    images: int
    labeled: int
    finished: bool
    bad: tuple[str, ...]
    images_per_second: float


def labels_complete(source: Source, store: LabelStore) -> bool:
    """Whether a folder holds finished labels of all OOD images except the bad ones.

    Args:
      source: the OOD images.
      store: the folder, from `open_store`.

    Raises:
      InputError: the folder holds labels of another model, vocabulary or setting, finished shards of labels are
        damaged or missing, or two images have the same id.
    """
    manifest = store.open()
    if manifest is None or not manifest["finished"]:
        return False
    cache = open_label_cache(store.folder)
    if faults := cache.faults():
        raise InputError(f"{store.folder}: {len(faults)} fault(s) in cached labels: {first_few(faults)}")
    return not unsettled(cache, _unique_ids(source))


def label_images(
    source: Source,
    ovs: OVS,
    store: LabelStore,
    mesh: Mesh,
    *,
    batch_size: int,
    num_threads: int,
    max_bad_records: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> LabelReport:
    """Labels every OOD image that has no label yet.

    Images keep their size and are labeled on at most four compiled shapes. A process computes on its own devices of
    `mesh` only, so that shares may differ in length. The one that completes the set writes manifest and contact sheet.

    Args:
      source: the OOD images.
      ovs: the model.
      store: the folder of the labels, from `open_store`.
      mesh: devices, along the one axis "data".
      batch_size: images in a batch, rounded up to a multiple of this process's devices.
      num_threads: threads that decode images, and as many that encode labels.
      max_bad_records: limit of unreadable images.
      process_index: which share of the images to label; None for JAX's process.
      process_count: number of shares; None for JAX's processes, which wait for each other at the end.

    Raises:
      InputError: the folder holds other labels or cannot be written, two images have the same id, or more images than
        `max_bad_records` cannot be read.
    """
    together = process_count is None and jax.process_count() > 1
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if not 0 <= index < count:
        raise InputError(f"process_index {index} of {count}: use 0 to {count - 1}, and give process_count with it")
    ids = _unique_ids(source)
    store.begin()
    start = time.perf_counter()
    labeled = 0
    if _has_work(store, ids):
        job = Job(store, ovs, mesh.local_mesh, batch_size, max(1, num_threads), BadRecords(max_bad_records))
        parts = job.parts(_unique_records(source))
        labeled = job.run(parts[index::count], name=f"OVS labels {index + 1}/{count}")
    seconds = time.perf_counter() - start
    _wait_for_all("every process has labeled its share", together)
    finished = store.finished(ids)
    if finished and (index == 0 or not together):
        store.finish(ids, {"labeled": labeled, "seconds": round(seconds, 1)})
        joined = LabeledSource(source, open_label_cache(store.folder))
        write_contact_sheet(store.folder, _unique_records(joined), store.dataset)
    _wait_for_all("the manifest is finished", together)
    cache = open_label_cache(store.folder)
    unreadable = tuple(id_ for id_ in ids if not cache.is_labeled(id_)) if finished else ()
    return LabelReport(len(ids), labeled, finished, unreadable, labeled / seconds)


def _wait_for_all(event: str, together: bool) -> None:
    if together:
        multihost_utils.sync_global_devices(event)


def _has_work(store: LabelStore, ids: Sequence[str]) -> bool:
    """Whether an image has no label (a bad image may be fixed by now), or files are unfinished or damaged."""
    manifest = store.open()
    if manifest is None or not manifest["finished"]:
        return True
    cache = open_label_cache(store.folder)
    return not all(map(cache.is_labeled, ids)) or bool(cache.faults())


def _unique_ids(source: Source) -> list[str]:
    """Ids of the images in the order of the set, without repetitions; two images with one id raise `InputError`."""
    ids = source.ids()
    unique = list(dict.fromkeys(ids))
    if len(unique) == len(ids):
        return unique
    first: dict[str, Record] = {}
    for record in (source[i] for i in range(len(source))):
        if first.setdefault(record.id, record).image != record.image:
            raise InputError(
                f"config.data.ood_root: {first[record.id].image.name} and {record.image.name} have the same id "
                f"{record.id}: the label of one would overwrite the label of the other; give each image its own id"
            )
    return unique


def _unique_records(source: Source) -> list[Record]:
    """The records in the order of the set, without repetitions of an id."""
    records: dict[str, Record] = {}
    for record in (source[i] for i in range(len(source))):
        records.setdefault(record.id, record)
    return list(records.values())
