"""Which model makes the labels of a folder: the facts that its manifest records."""

from typing import Any

import jax

from data_pipelines.datasets import DatasetInfo
from semiovs_jax.ovs.base import OVS
from semiovs_jax.ovs.vocabulary import load_vocabulary
from semiovs_jax.weights.files import file_sha256
from semiovs_jax.weights.parts import weights_path

_NOT_SETTINGS = ("name", "weights", "vocabulary", "labels", "labels_dir", "batch_size")


def labels_identity(ovs_config: Any, ovs: OVS, dataset: DatasetInfo) -> dict[str, Any]:
    """The facts that identify the labels of a model.

    Args:
      ovs_config: the `ovs` section of the config.
      ovs: the model that `build_ovs(ovs_config, num_classes)` returns.
      dataset: the dataset of the labels.

    Returns:
      Plain data for `open_store`: "fingerprint" and "matmul_precision" decide whether cached labels are stale, the
      other facts explain why. Labels of one set are made on one kind of "device".

    Raises:
      InputError: the vocabulary or the weights cannot be read.
    """
    vocabulary = load_vocabulary(ovs_config.vocabulary, templates=ovs_config.get("templates", ""))
    weights = weights_path(ovs_config.weights)
    return {
        "fingerprint": ovs.fingerprint,
        "ovs": ovs_config.name,
        "vocabulary": vocabulary.name,
        "vocabulary_sha256": vocabulary.sha256,
        "weights": ovs_config.weights,
        "weights_sha256": file_sha256(weights) if weights.is_file() else "",
        "dataset": dataset.name,
        "device": jax.devices()[0].device_kind,
        "matmul_precision": "highest",
        **{key: value for key, value in ovs_config.items() if key not in _NOT_SETTINGS},
    }
