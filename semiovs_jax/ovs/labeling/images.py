"""Labels every OOD image once, by an OVS, into a folder of cached labels."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError, first_few
from data_pipelines.labels.cache import open_label_cache, unsettled
from data_pipelines.labels.manifest import FILES, SHARDS, read_manifest
from data_pipelines.labels.store import FileStore, LabelStore
from data_pipelines.loading.streams import open_config_split, with_labels
from data_pipelines.loading.worker_log import BadRecords
from data_pipelines.sources.records import Record, Source
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.labeling.contact_sheet import write_contact_sheet
from semiovs_jax.ovs.labeling.job import BadImages, Job
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.weights.files import file_sha256
from semiovs_jax.weights.parts import weights_path

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
      InputError: it holds labels of another model, vocabulary or setting, finished shards of labels are damaged or
        gone, or the OOD set cannot be listed.
    """
    source = open_config_split(config.data, "ood")
    manifest = _open_store(config, ovs, source).open()
    if manifest is None or not manifest["finished"]:
        return False
    cache = open_label_cache(Path(config.ovs.labels_dir))
    if faults := cache.faults():
        raise InputError(f"{config.ovs.labels_dir}: {len(faults)} fault(s) in cached labels: {first_few(faults)}")
    return not unsettled(cache, _unique_ids(config, source))


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
    source = open_config_split(config.data, "ood")
    ids = _unique_ids(config, source)
    store = _open_store(config, ovs, source)
    store.begin()
    start = time.perf_counter()
    labeled = 0
    if store.has_work(ids):
        with ThreadPoolExecutor(max(1, config.data.num_threads)) as pool:
            bad = BadImages(store, BadRecords(config.data.max_bad_records))
            job = Job(store, ovs, mesh.local_mesh, config.ovs.batch_size, store.dataset.ignore_index, bad, pool)
            try:
                parts = job.parts(list(_records(source).values()))
                store.plan([[record.id for record in part.records] for part in parts])
                labeled = job.run(parts[index::count], name=f"OVS labels {index + 1}/{count}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    seconds = time.perf_counter() - start
    if together:
        multihost_utils.sync_global_devices("every process has labeled its share")
    finished = store.finished(ids)
    if finished and (index == 0 or not together):
        store.finish(ids, {"labeled": labeled, "seconds": round(seconds, 1)})
        joined = _records(with_labels(source, open_label_cache(store.folder), confidence=True))
        write_contact_sheet(store.folder, joined.values(), store.dataset)
    if together:
        multihost_utils.sync_global_devices("the manifest is finished")
    cache = open_label_cache(store.folder)
    unreadable = tuple(id_ for id_ in ids if not cache.is_labeled(id_)) if finished else ()
    return LabelReport(len(ids), labeled, finished, unreadable, labeled / seconds)


def _unique_ids(config: Any, source: Source) -> list[str]:
    """Ids of the OOD images in the order of the set, each once; raises `InputError` if two images share one."""
    ids = source.ids()
    unique = list(dict.fromkeys(ids))
    if len(unique) == len(ids):
        return unique
    first: dict[str, Record] = {}
    for record in (source[i] for i in range(len(source))):
        if first.setdefault(record.id, record).image != record.image:
            raise InputError(
                f"config.data.ood_root={config.data.ood_root}: {first[record.id].image.name} and {record.image.name} "
                f"have the same id {record.id}: their labels would overwrite each other; give each image an id of its "
                "own"
            )
    return unique


def _records(source: Source) -> dict[str, Record]:
    """The OOD images by id, in the order of the set."""
    records: dict[str, Record] = {}
    for record in (source[i] for i in range(len(source))):
        records.setdefault(record.id, record)
    return records


def _open_store(config: Any, ovs: OVS, source: Source) -> LabelStore:
    """The store in the form that is there already; a new one is of shards where the images are."""
    info = dataset_info(config.data.dataset)
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
    folder = Path(config.ovs.labels_dir)
    manifest = read_manifest(folder)
    if manifest is None:
        form = FILES if not source.prepared or (folder / "labels").is_dir() else SHARDS
    else:
        form = manifest.get("form", FILES)
    if form == FILES:
        return FileStore(folder, identity, info)
    from data_pipelines.labels.shard_store import ShardStore  # importing it takes a while

    return ShardStore(folder, identity, info)
