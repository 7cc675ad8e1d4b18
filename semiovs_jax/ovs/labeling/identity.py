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
      Those of `expected_identity`, the digest of the weight file, and the kind of the devices. Labels of one set are
      made on one kind.

    Raises:
      InputError: the vocabulary or the weights cannot be read.
    """
    weights = weights_path(ovs_config.weights)
    digest = file_sha256(weights) if weights.is_file() else ""
    made = {"weights_sha256": digest, "device": jax.devices()[0].device_kind}
    return expected_identity(ovs_config, ovs.fingerprint, dataset) | made


def expected_identity(ovs_config: Any, fingerprint: str, dataset: DatasetInfo) -> dict[str, Any]:
    """The facts that identify the labels of a model that is not built.

    Args:
      ovs_config: the `ovs` section of the config.
      fingerprint: of the model.
      dataset: the dataset of the labels.

    Returns:
      Plain data for `open_store`: "fingerprint" and "matmul_precision" decide whether cached labels are stale, the
      other facts explain why. Needs no device.

    Raises:
      InputError: the vocabulary cannot be read.
    """
    vocabulary = load_vocabulary(ovs_config.vocabulary, templates=ovs_config.get("templates", ""))
    return {
        "fingerprint": fingerprint,
        "ovs": ovs_config.name,
        "vocabulary": vocabulary.name,
        "vocabulary_sha256": vocabulary.sha256,
        "weights": ovs_config.weights,
        "dataset": dataset.name,
        "matmul_precision": "highest",
        **{key: value for key, value in ovs_config.items() if key not in _NOT_SETTINGS},
    }
