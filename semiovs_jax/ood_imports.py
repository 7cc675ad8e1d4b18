"""OOD labels of another tool are taken over, with a page that shows them: --import of `label`."""

from pathlib import Path

import ml_collections

from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import Faults
from data_pipelines.files import local_path
from data_pipelines.labels.cache import LabeledSource
from data_pipelines.labels.imports import Imported, import_labels
from data_pipelines.labels.manifest import labels_folder
from data_pipelines.sources.records import Source
from semiovs_jax.config_ranges import range_faults
from semiovs_jax.experiment import open_ood
from semiovs_jax.ovs.labeling.contact_sheet import write_sheet


def import_ood_labels(config: ml_collections.ConfigDict, folder: str) -> Imported:
    """Takes over labels for the OOD images of a config, see `import_labels`, and writes their contact sheet.

    Args:
      config: an experiment; the labels go to `config.ovs.labels_dir`.
      folder: the labels of the other tool.

    Raises:
      InputError: as `import_labels`, or images or dataset cannot be opened; all that can be found at once.
    """
    faults, dataset = Faults(), None
    out = labels_folder(config.ovs.labels_dir)
    faults.add(range_faults(config))
    with faults.collected():
        dataset = dataset_info(config.data.dataset)
    source = open_ood(config, faults)
    faults.refuse()
    assert dataset is not None
    assert source is not None
    threads = max(1, config.data.num_threads)
    imported = import_labels(source, local_path(folder, "--import"), out, dataset, num_threads=threads)
    _write_sheet(imported, source, dataset, folder)
    return imported


def _write_sheet(imported: Imported, source: Source, dataset: DatasetInfo, folder: str) -> Path:
    joined = LabeledSource(source, imported.labels)
    positions = {id_: position for position, id_ in enumerate(joined.ids()) if imported.labels.is_labeled(id_)}
    return write_sheet(
        imported.labels.folder,
        f"Imported labels of {imported.images} images",
        {"dataset": dataset.name, "imported from": folder},
        dict(zip((*dataset.classes, "ignored"), imported.pixels.tolist(), strict=True)),
        [joined[position] for position in positions.values()],
        dataset,
    )
