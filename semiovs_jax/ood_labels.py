"""The OOD images of a config are labeled: before training where labels are missing, or by the command `label`."""

import logging

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import Faults
from data_pipelines.labels.manifest import labels_folder
from data_pipelines.labels.open_store import open_store
from data_pipelines.labels.store import LabelStore
from data_pipelines.labels.verify import Verified
from data_pipelines.sources.records import Source
from semiovs_jax.config_ranges import range_faults
from semiovs_jax.experiment import Experiment, open_ood
from semiovs_jax.ovs import build_ovs, model_faults
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.labeling.doubt import training_doubt
from semiovs_jax.ovs.labeling.identity import labels_identity
from semiovs_jax.ovs.labeling.images import LabelReport, label_images, labels_complete
from semiovs_jax.ovs.words import check_words
from semiovs_jax.runtime.processes import wait_for_processes

_logger = logging.getLogger(__name__)


def prepare_labels(config: ml_collections.ConfigDict, run: Experiment, mesh: Mesh) -> None:
    """Labels the OOD images where the method reads cached labels and some are missing; every process must call this.

    Raises:
      InputError: the cached labels are another model's, or the model cannot be built.
    """
    if "ood" not in run.method.streams or config.ovs.labels != "cached":
        return
    source = run.sources["ood"]
    ovs, store = _open_labeling(config, run.dataset, source)
    complete = labels_complete(source, store, run.labels, num_threads=config.data.num_threads)
    # A process may have looked later than another one. All must label, or none, because they wait for each other.
    wait_for_processes("every process has looked for labels")
    if jax.process_count() > 1:
        complete = bool(multihost_utils.process_allgather(np.array(complete)).all())
    if not complete:
        _logger.info("labeling the OOD images in %s", config.data.ood_root)
        _label(config, source, ovs, store, mesh, run.labels)


def label_ood_images(config: ml_collections.ConfigDict, mesh: Mesh, **share: int | None) -> LabelReport:
    """Labels all OOD images that have no label yet; `share` is process_index and process_count of `label_images`.

    Raises:
      InputError: as `label_images`, or the images or the model cannot be opened, or the labels are to be written among
        the images; all that can be found at once.
    """
    faults, dataset = Faults(), None
    faults.add(range_faults(config))
    faults.add(model_faults(config.ovs))
    with faults.collected():
        dataset = dataset_info(config.data.dataset)
    with faults.collected():
        check_words("ovs", config.ovs, dataset)
    source = open_ood(config, faults)
    faults.refuse()
    assert dataset is not None
    assert source is not None
    if doubt := training_doubt("ovs", config.ovs.weights, dataset):
        _logger.warning(doubt)
    ovs, store = _open_labeling(config, dataset, source)
    return _label(config, source, ovs, store, mesh, None, **share)


def _open_labeling(config: ml_collections.ConfigDict, dataset: DatasetInfo, source: Source) -> tuple[OVS, LabelStore]:
    ovs = build_ovs(config.ovs, dataset.num_classes)
    identity = labels_identity(config.ovs, ovs, dataset)
    return ovs, open_store(labels_folder(config.ovs.labels_dir), identity, dataset, prepared=source.prepared)


def _label(
    config: ml_collections.ConfigDict,
    source: Source,
    ovs: OVS,
    store: LabelStore,
    mesh: Mesh,
    verified: Verified | None,
    **share: int | None,
) -> LabelReport:
    return label_images(
        source,
        ovs,
        store,
        mesh,
        batch_size=config.ovs.batch_size,
        num_threads=config.data.num_threads,
        max_bad_records=config.data.max_bad_records,
        verified=verified,
        **share,
    )
