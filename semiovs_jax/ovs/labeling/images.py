"""Labels every OOD image once with an OVS, and caches the labels in a folder."""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.errors import InputError, first_few
from data_pipelines.labels.cache import LabeledSource, open_label_cache, unsettled
from data_pipelines.labels.manifest import read_class_pixels
from data_pipelines.labels.store import LabelStore
from data_pipelines.labels.verify import Verified, verify_labels
from data_pipelines.loading.worker_log import BadRecords
from data_pipelines.sources.records import Record, SelectedSource, Source
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.labeling.contact_sheet import write_contact_sheet
from semiovs_jax.ovs.labeling.doubt import confidence_doubt
from semiovs_jax.ovs.labeling.job import Job
from semiovs_jax.runtime.processes import wait_for_processes

_log = logging.getLogger(__name__)


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


def labels_complete(
    source: Source, store: LabelStore, verified: Verified | None = None, *, num_threads: int = 8
) -> bool:
    """Whether a folder holds finished, sound labels of all OOD images except the bad ones, and their class counts.

    Args:
      source: the OOD images.
      store: the folder, from `open_store`.
      verified: of `verify_labels`, if it is known already.
      num_threads: threads that check files.

    Raises:
      InputError: the folder holds labels of another model, vocabulary, setting or image set, finished shards of labels
        are damaged or missing, or two images have the same id.
    """
    manifest = store.open()
    if manifest is None or not manifest["finished"]:
        return False
    cache = open_label_cache(store.folder)
    if faults := cache.faults():
        raise InputError(f"{store.folder}: {len(faults)} fault(s) in cached labels: {first_few(faults)}")
    ids = _unique_ids(source)
    verified = verified or verify_labels(cache, source, num_threads=num_threads)
    if verified.faults:
        raise InputError(*verified.faults)
    if verified.unusable or unsettled(cache, ids) or not _has_class_pixels(store):
        return False
    store.adopt(verified)
    if device := store.other_device():
        _log.info("%s: the labels are made on %s, and used here as they are", store.folder, device)
    return True


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
    verified: Verified | None = None,
) -> LabelReport:
    """Labels every OOD image that has no label yet, was replaced since it was labeled, or has a damaged label.

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
      verified: of `verify_labels`, if it is known and logged already.

    Raises:
      InputError: the folder holds other labels or cannot be written, two images have the same id, more images than
        `max_bad_records` cannot be read, or devices of another kind made the labels that exist.
    """
    together = process_count is None and jax.process_count() > 1
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if not 0 <= index < count:
        raise InputError(f"process_index {index} of {count}: use 0 to {count - 1}, and give process_count with it")
    ids = _unique_ids(source)
    store.begin()
    start = time.perf_counter()
    if verified is None:
        verified = verify_labels(open_label_cache(store.folder), source, num_threads=num_threads)
        for message in verified.messages():
            _log.warning("%s: %s", store.folder, message)
    if verified.faults:
        raise InputError(*verified.faults)
    store.adopt(verified)
    store.unusable = verified.unusable
    labeled = 0
    if _has_work(store, ids):
        job = Job(store, ovs, mesh.local_mesh, batch_size, max(1, num_threads), BadRecords(max_bad_records))
        parts = job.parts(_unique_records(source))
        labeled = job.run(parts[index::count], name=f"OVS labels {index + 1}/{count}")
    seconds = time.perf_counter() - start
    _wait_for_all("every process has labeled its share", together)
    finished = store.finished(ids) and not _still_unusable(source, store, num_threads)
    if finished and (index == 0 or not together):
        last_run = {"labeled": labeled, "seconds": round(seconds, 1)}
        manifest = store.finish(ids, last_run, verified.stamp)
        if doubt := confidence_doubt(manifest, store.folder):
            _log.warning(doubt)
        joined = LabeledSource(source, open_label_cache(store.folder))
        write_contact_sheet(store.folder, _unique_records(joined), store.dataset)
    _wait_for_all("the manifest is finished", together)
    cache = open_label_cache(store.folder)
    unreadable = tuple(id_ for id_ in ids if not cache.is_labeled(id_)) if finished else ()
    return LabelReport(len(ids), labeled, finished, unreadable, labeled / seconds)


def _has_class_pixels(store: LabelStore) -> bool:
    try:
        read_class_pixels(store.folder)
    except InputError:
        return False
    return True


def _wait_for_all(event: str, together: bool) -> None:
    if together:
        wait_for_processes(event)


def _has_work(store: LabelStore, ids: Sequence[str]) -> bool:
    """Whether an image has no usable label (a bad image may be fixed by now), or files are unfinished or damaged.

    Raises:
      InputError: labels must be made, but devices of another kind made those that exist.
    """
    manifest, cache = store.open(), open_label_cache(store.folder)
    finished = manifest is not None and manifest["finished"]
    lost = bool(store.unusable or cache.faults() or unsettled(cache, ids))
    if device := store.other_device():
        if lost:
            raise InputError(
                f"{store.folder}: the labels are made on {device}, but this process labels on "
                f"{store.identity['device']}; labels of one set need one kind of device: continue on {device}, or set "
                "config.ovs.labels_dir to another folder to label all images here"
            )
        return not finished  # bad images are not tried again
    return lost or not finished or not all(map(cache.is_labeled, ids))


def _still_unusable(source: Source, store: LabelStore, num_threads: int) -> bool:
    """Whether another process has not yet made the labels again that were unusable at the start."""
    if not store.unusable:
        return False
    positions = [position for position, id_ in enumerate(source.ids()) if id_ in store.unusable]
    remade = SelectedSource(source, np.array(positions, np.int64))
    return bool(verify_labels(open_label_cache(store.folder), remade, num_threads=num_threads).unusable)


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
