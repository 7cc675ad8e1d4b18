"""Opens the store of cached labels in the form that its folder has, or gets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.files import is_remote, url_fault
from data_pipelines.labels.manifest import (
    FILES,
    SHARDS,
    read_manifest,
)
from data_pipelines.labels.store import FileStore, LabelStore


def open_store(folder: Path, identity: Mapping[str, Any], dataset: DatasetInfo, *, prepared: bool) -> LabelStore:
    """Opens a folder of cached labels for writing. Reads no more than the manifest.

    Args:
        folder: The folder, which keeps the form that it has.
        identity: Facts about the model, see `LabelStore`.
        dataset: Classes and palette of the labels.
        prepared: Whether the images are in shards; then a new folder gets shards, too, unless it is on
            object storage.

    Raises:
        InputError: The manifest cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        form = FILES if not prepared or is_remote(folder) or (folder / "labels").is_dir() else SHARDS
    else:
        form = manifest.get("form", FILES)
    if form == FILES:
        return FileStore(folder, identity, dataset)
    if fault := url_fault(folder, "config.ovs.labels_dir"):
        raise InputError(f"{fault}. Its labels are in shards, which are files")
    from data_pipelines.labels.shard_store import ShardStore  # slow import

    return ShardStore(folder, identity, dataset)
