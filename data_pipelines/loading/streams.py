"""Opens the source of each stream in a config: split lists, folders, prepared datasets, mixtures."""

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

    All streams but "ood" read the split list of their key, relative to `root`. Its entries are files below `root`, or
    the examples with these ids if `root` holds a prepared dataset (see `shards`). There, the key may also name one of
    the dataset's own splits.

    "ood" reads `ood_root`, which is one of three things: a folder of images, of which a list `ood_split` selects some;
    a prepared dataset, of which `ood_split` names a split; or a JSON file of several sources (see `mixture`).

    Args:
        data_config: The `data` section of the config.
        stream: Name of the stream. "mix" reads "unlabeled" a second time.
        ood_labels_dir: Folder of cached pseudo-labels, joined to the "ood" stream by id.
        ood_confidence: Whether to join their confidence maps, too.

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
    """Opens the files of a split list; or, if `root` is a prepared dataset, the examples with these ids.

    Args:
        root: Folder that the list's paths are relative to, or a dataset prepared by TensorFlow Datasets.
        split: As in `folders.open_list`; or the name of one of the splits of the prepared dataset.
        names: The names of `root` and `split` in error messages.
        with_labels: Whether the records have labels.

    Raises:
        InputError: The root, the list or an example is missing, empty or malformed.
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
        from data_pipelines.sources.shards import open_shards  # a slow import

        return open_shards(prepared, split, field=names[1])
    return open_images(root, split, names)


def _open_prepared_list(folder: Path, root: Path, split: str, field: str, *, with_labels: bool) -> Source:
    """The examples with the ids of a split list or, without such a list, the dataset's own split of that name."""
    from data_pipelines.sources.shards import open_shards  # a slow import

    if split and not (root / split).exists():
        return open_shards(folder, split, labeled=with_labels, field=field)
    images, _ = read_split(root, split, field, with_labels=False)
    source = open_shards(folder, labeled=with_labels, field=field)
    return _select(source, [record_id(image) for image in images], root / split)


def _select(source: Source, ids: Sequence[str], path: Path) -> SelectedSource:
    wanted = set(ids)
    positions: dict[str, int] = {}
    for position, id_ in enumerate(source.ids()):
        if id_ in wanted:
            positions.setdefault(id_, position)
    if missing := [id_ for id_ in ids if id_ not in positions]:
        raise InputError(
            f"{path}: {len(missing)} of its {len(ids)} images are not in the prepared dataset: {first_few(missing)}; "
            "prepare it again from the images of the list"
        )
    return SelectedSource(source, np.array([positions[id_] for id_ in ids], np.int64))
