"""The splits that a config names (lists of files, folders, prepared datasets, mixtures), and the streams of a batch."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import InputError, first_few
from data_pipelines.files import expand, url_fault
from data_pipelines.labels.cache import LabelCache, LabeledSource
from data_pipelines.sources.folders import existing_folder, open_images, open_list, prepared_dataset
from data_pipelines.sources.lists import read_split
from data_pipelines.sources.mixture import Mixture, open_mixture
from data_pipelines.sources.records import ConcatenatedSource, SelectedSource, Source, record_id

_ROOT, _OOD_ROOT, _OOD_SPLIT = "config.data.root", "config.data.ood_root", "config.data.ood_split"


def open_config_split(data_config: Any, split: str) -> Source:
    """Opens a split, without OVS labels: "labeled", "unlabeled", "ood" or "val".

    All splits but "ood" read the split list of their key, relative to `root`. Its entries are files below `root`, or
    the examples with these ids if `root` holds a prepared dataset (see `shards`). There, the key may also name one of
    the dataset's own splits.

    "ood" reads `ood_root`, which is one of three things: a folder of images, of which a list `ood_split` selects some;
    a prepared dataset, of which `ood_split` names a split; or a JSON file of several sources (see `mixture`).

    Args:
        data_config: The `data` section of the config.
        split: Name of the split.

    Raises:
        InputError: A root or split is missing, empty or malformed.
    """
    if split == "ood":
        return _open_ood(data_config.ood_root, data_config.ood_split)
    key = f"{split}_split"
    names = (_ROOT, f"config.data.{key}")
    return open_split(data_config.root, data_config[key], names, with_labels=split in ("labeled", "val"))


def train_sources(
    splits: Mapping[str, Source],
    streams: Sequence[str],
    *,
    labels: LabelCache | None = None,
    confidence: bool = True,
    ood_as_unlabeled: bool = False,
) -> dict[str, Source]:
    """The records of each stream of a training batch, from splits that are opened once.

    Args:
        splits: The opened splits.
        streams: Names of the streams: splits, and "mix", a second reading of "unlabeled".
        labels: OVS labels of the "ood" stream; None without.
        confidence: Whether to read their confidence, too, which takes as long as reading the labels or longer.
        ood_as_unlabeled: Whether the "ood" images, without labels, join "unlabeled" and "mix".

    Raises:
        InputError: A mixture has weights or sources drawn once, but its images join the unlabeled ones.
    """
    sources = {name: splits["unlabeled" if name == "mix" else name] for name in streams}
    if "ood" in sources and labels is not None:
        sources["ood"] = with_labels(sources["ood"], labels, confidence=confidence)
    if ood_as_unlabeled:
        _refuse_draws(splits["ood"])
        for name in {"unlabeled", "mix"} & set(sources):
            sources[name] = ConcatenatedSource((sources[name], splits["ood"]))
    return sources


def _refuse_draws(source: Source) -> None:
    """OOD images that join the unlabeled ones are shuffled among them, each once an epoch."""
    if isinstance(source, Mixture) and (len(set(source.weights)) > 1 or any(source.once)):
        raise InputError(
            f"{_OOD_ROOT}: its weights and 'once' have no effect with config.method.ood='unlabeled', which draws each "
            "image once an epoch; leave them out"
        )


def with_labels(source: Source, cache: LabelCache, *, confidence: bool) -> Source:
    """The records of a source or mixture, joined by id to pseudo-labels, and to their confidence if asked for."""
    if isinstance(source, Mixture):
        parts = tuple(LabeledSource(part, cache, confidence) for part in source.sources)
        return dataclasses.replace(source, sources=parts)
    return LabeledSource(source, cache, confidence)


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


def _open_ood(root: str, split: str) -> Source:
    if not root.endswith(".json"):
        return _open_images(existing_folder(root, _OOD_ROOT), split, (_OOD_ROOT, _OOD_SPLIT))
    if split:
        raise InputError(f"{_OOD_SPLIT}={split}: {root} names the splits of its sources; set {_OOD_SPLIT} to ''")
    if fault := url_fault(root, _OOD_ROOT):
        raise InputError(fault)
    return open_mixture(
        expand(root),
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
    images = read_split(root, split, field, with_labels=False).images
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
