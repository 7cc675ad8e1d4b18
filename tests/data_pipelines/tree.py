"""Writes small VOC-layout and COCO-layout trees for the tests of the input pipeline."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.datasets import dataset_info, voc_palette
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.loading.options import Options
from data_pipelines.loading.selection import Filter, select_images
from data_pipelines.loading.streams import open_config_split, train_sources, with_labels
from data_pipelines.pipeline import TrainData, ValidationRecords, make_train_iterator
from data_pipelines.sources.records import Source


def data_config(root: Path, **changes) -> ConfigDict:
    config = ConfigDict(
        {
            "root": str(root),
            "labeled_split": "labeled.txt",
            "unlabeled_split": "unlabeled.txt",
            "val_split": "val.txt",
            "ood_root": str(root / "ood"),
            "ood_split": "",
            "ood_min_foreground": 0.0,
            "ood_repeat_threshold": 0.0,
            "dataset": "voc21",
            "crop_size": 33,
            "scale_range": (0.5, 2.0),
            "scale_short_side": 0,
            "scaled_decode": False,
            "max_bad_records": 0,
            "num_workers": 0,
            "num_threads": 2,
            "prefetch": 2,
            "stall_seconds": 60.0,
        }
    )
    config.update(changes)
    return config


def open_stream(config: ConfigDict, stream: str, labels_dir: str | None = None) -> Source:
    """The records of a stream, with the cached labels of a folder."""
    source = open_config_split(config, "unlabeled" if stream == "mix" else stream)
    return with_labels(source, open_label_cache(Path(labels_dir)), confidence=True) if labels_dir else source


def train_data(
    config: ConfigDict,
    streams: Sequence[str],
    *,
    batch_size: int,
    seed: int = 0,
    ood_labels_dir: str | None = None,
    ood_confidence: bool = True,
    ood_as_unlabeled: bool = False,
    **processes: int,
) -> TrainData:
    """The training batches of a config's `data` section."""
    info = dataset_info(config.dataset)
    names = {"unlabeled" if name == "mix" else name for name in streams} | ({"ood"} if ood_as_unlabeled else set())
    splits = {name: open_config_split(config, name) for name in sorted(names)}
    labels = selection = None
    if ood_labels_dir is not None:
        labels = open_label_cache(Path(ood_labels_dir))
        keys = Filter(config.ood_min_foreground, config.ood_repeat_threshold)
        selection = select_images(splits["ood"], keys, Path(ood_labels_dir), info)
    sources = train_sources(
        splits, streams, labels=labels, confidence=ood_confidence, ood_as_unlabeled=ood_as_unlabeled
    )
    options = Options.read(config)
    return make_train_iterator(
        sources, info, options, batch_size=batch_size, seed=seed, selection=selection, **processes
    )


def validation_records(config: ConfigDict) -> ValidationRecords:
    """The validation images of a config's `data` section."""
    return ValidationRecords(open_config_split(config, "val"), dataset_info(config.dataset))


def write_tree(root: Path, labeled: int = 3, unlabeled: int = 7, val: int = 2, ood: int = 5) -> ConfigDict:
    """Writes numbered images of mixed sizes, splits and an OOD folder with a subfolder; returns their config."""
    number = 0
    for split, count in (("labeled", labeled), ("unlabeled", unlabeled), ("val", val)):
        ids = [f"{number + i:04d}" for i in range(count)]
        for id_ in ids:
            write_pair(root, id_)
        lines = [f"JPEGImages/{id_}.jpg SegmentationClass/{id_}.png" for id_ in ids]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
        number += count
    for i in range(ood):
        path = root / "ood" / ("train" if i % 2 else ".") / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(image(100 + i)))
    return data_config(root)


def write_pair(root: Path, id_: str) -> None:
    seed = int(id_)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages" / f"{id_}.jpg").write_bytes(jpeg(image(seed)))
    write_label(root / "SegmentationClass" / f"{id_}.png", label(seed))


def image(seed: int) -> np.ndarray:
    """Every image of one size and brightness of its own, so that a crop tells which one it shows."""
    rng = np.random.default_rng(seed)
    height, width = 30 + seed % 5, 40 + seed % 7
    return np.clip(rng.normal(seed % 200 + 20, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def label(seed: int) -> np.ndarray:
    plane = np.zeros(image(seed).shape[:2], np.uint8)
    plane[5:20, 5:25] = seed % 20 + 1
    plane[4, 5:25] = 255
    return plane


def jpeg(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def jpeg_of_size(height: int, width: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(jpeg(image(7)))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def write_label(path: Path, plane: np.ndarray) -> None:
    picture = Image.fromarray(plane)
    picture.putpalette(voc_palette().ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_cached_labels(root: Path, folder: Path, ids: list[str]) -> None:
    """Cached pseudo-labels for OOD images: label 3 everywhere, confidence 200."""
    for id_ in ids:
        with Image.open(root / "ood" / f"{id_}.jpg") as picture:
            size = picture.height, picture.width
        write_label(folder / "labels" / f"{id_}.png", np.full(size, 3, np.uint8))
        path = folder / "confidence" / f"{id_}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, 200, np.uint8)).save(path)
