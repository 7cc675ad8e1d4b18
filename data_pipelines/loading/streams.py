"""Opens the source of each stream that a config names: lists of files, folders, prepared datasets, mixtures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError, first_few
from data_pipelines.labels.cache import LabelCache, LabeledSource, open_label_cache
from data_pipelines.sources.folders import existing_folder, open_images, open_list, prepared_dataset, read_split
from data_pipelines.sources.mixture import Mixture, open_mixture
from data_pipelines.sources.records import SelectedSource, Source, record_id

_ROOT, _OOD_ROOT, _OOD_SPLIT = "config.data.root", "config.data.ood_root", "config.data.ood_split"


def open_stream(
    data_config: Any, stream: str, ood_labels_dir: str | None = None, *, ood_confidence: bool = True
) -> Source:
    """Opens the source of a stream: "labeled", "unlabeled", "mix", "ood" or "val".

    Streams but "ood" read what their split list names: files below `root`; or examples, by id, of the dataset that
    TensorFlow Datasets has prepared there (see `shards`), which may have a split of that name instead. "ood" reads
    image files below `ood_root`, those of the list `ood_split` if one is given; the split `ood_split` of a prepared
    dataset; or, where `ood_root` is a json file, the sources that it names (see `mixture`).

    Args:
        data_config: The `data` section of the config.
        stream: Name of the stream. "mix" is a second reading of "unlabeled".
        ood_labels_dir: Folder of cached pseudo-labels to join to the "ood" stream by id.
        ood_confidence: Whether to join their confidence, too.

    Raises:
        InputError: A root or split is missing, empty or malformed.
    """
    if stream == "ood":
        source = _open_ood(data_config.ood_root, data_config.ood_split)
        return _labeled(source, open_label_cache(Path(ood_labels_dir)), ood_confidence) if ood_labels_dir else source
    split = {"mix": "unlabeled_split"}.get(stream, f"{stream}_split")
    names = (_ROOT, f"config.data.{split}")
    return open_split(data_config.root, data_config[split], names, with_labels=stream in ("labeled", "val"))


def open_split(root: str, split: str, names: tuple[str, str], *, with_labels: bool) -> Source:
    """Opens the files that a split list names; or, where `root` is a prepared dataset, its examples of those ids.

    Args:
        root: Folder that the list's paths are relative to, or a dataset prepared by TensorFlow Datasets.
        split: As of `folders.open_list`; or the name of one of the prepared dataset's own splits.
        names: What error messages call `root` and `split`.
        with_labels: Whether the records have labels.

    Raises:
        InputError: The root, the list or an example is missing, or one is empty or malformed.
    """
    folder = existing_folder(root, names[0])
    if prepared := prepared_dataset(folder):
        return _open_prepared_list(prepared, folder, split, names[1], with_labels=with_labels)
    return open_list(root, split, names, with_labels=with_labels)


def _labeled(source: Source, cache: LabelCache, confident: bool) -> Source:
    if isinstance(source, Mixture):
        parts = tuple(LabeledSource(part, cache, confident) for part in source.sources)
        return dataclasses.replace(source, sources=parts)
    return LabeledSource(source, cache, confident)


def _open_ood(root: str, split: str) -> Source:
    if not root.endswith(".json"):
        return _open_images(existing_folder(root, _OOD_ROOT), split, (_OOD_ROOT, _OOD_SPLIT))
    if split:
        raise InputError(f"{_OOD_SPLIT}={split}: {root} names the splits of its sources; set {_OOD_SPLIT} to ''")
    return open_mixture(
        Path(root).expanduser(),
        lambda folder, of, name: _open_images(
            existing_folder(str(folder), f"{name}: root"), of, (f"{name}: root", f"{name}: split")
        ),
    )


def _open_images(root: Path, split: str, names: tuple[str, str]) -> Source:
    if prepared := prepared_dataset(root):
        from data_pipelines.sources.shards import open_shards  # importing it takes a while

        return open_shards(prepared, split, field=names[1])
    return open_images(root, split, names)


def _open_prepared_list(folder: Path, root: Path, split: str, field: str, *, with_labels: bool) -> Source:
    """The examples of a prepared dataset that a split list names by their ids, or one of the dataset's own splits."""
    from data_pipelines.sources.shards import open_shards  # importing it takes a while

    if split and not (root / split).exists():
        return open_shards(folder, split, labeled=with_labels, field=field)
    images, _ = read_split(root, split, field, with_labels=False)
    source = open_shards(folder, labeled=with_labels, field=field)
    return _select(source, [record_id(image) for image in images], root / split)


def _select(source: Source, ids: Sequence[str], path: Path) -> SelectedSource:
    """The records with these ids, which a list asks for."""
    wanted = set(ids)
    positions: dict[str, int] = {}
    for position, id_ in enumerate(source.ids()):
        if id_ in wanted:
            positions.setdefault(id_, position)
    if missing := [id_ for id_ in ids if id_ not in positions]:
        raise InputError(
            f"{path}: {len(missing)} of its {len(ids)} images are not in the prepared dataset: {first_few(missing)}; "
            "prepare it from the images that the list is of"
        )
    return SelectedSource(source, np.array([positions[id_] for id_ in ids], np.int64))
