"""The four training streams of the benchmarks, from our loader."""

from collections.abc import Sequence
from pathlib import Path

import ml_collections

from data_pipelines.datasets import dataset_info
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.loading.batches import BatchIterator
from data_pipelines.loading.options import Options
from data_pipelines.loading.streams import open_config_split, train_sources
from data_pipelines.pipeline import STREAMS, make_train_iterator
from semiovs_jax.benchmarks import photographs
from semiovs_jax.runtime.config_files import load_config

CONFIG = "configs/voc92.py"


def data_config(root: Path, crop_size: int, num_threads: int) -> ml_collections.ConfigDict:
    """The published data settings. Every stream reads the photographs below `root`."""
    config = load_config(CONFIG).unlock().data
    config.update(
        dataset=photographs.DATASET,
        root=str(root),
        labeled_split="train.txt",
        unlabeled_split="train.txt",
        ood_root=str(root / "images"),
        crop_size=crop_size,
        num_threads=num_threads,
    )
    return config


def our_batches(
    config: ml_collections.ConfigDict,
    labels_dir: Path,
    batch_size: int,
    streams: Sequence[str] = STREAMS,
    *,
    confidence: bool = False,
) -> BatchIterator:
    """Batches of our loader, OOD images with cached labels; the published methods read no confidence."""
    splits = {name: open_config_split(config, name) for name in ("labeled", "unlabeled", "ood")}
    sources = train_sources(splits, streams, labels=open_label_cache(labels_dir), confidence=confidence)
    options = Options.read(config)
    return make_train_iterator(sources, dataset_info(config.dataset), options, batch_size=batch_size, seed=0).iterator
