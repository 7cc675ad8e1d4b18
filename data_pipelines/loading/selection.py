"""Selects the OOD images to draw, and how often, by the classes in their cached OVS labels."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.labels.manifest import read_class_pixels
from data_pipelines.sources.records import Source


class Selection(NamedTuple):
    """The OOD images to draw, and how often.

    Attributes:
        positions: int64 [M], positions in the OOD set, ascending.
        repeats: float64 [M], how often each image is drawn relative to the others; None: all equally often.
    """

    positions: np.ndarray
    repeats: np.ndarray | None


def filter_keys(data_config: Any) -> str:
    """The `data` keys, with their values, that select images or change how often they are drawn; "" if all are 0."""
    keys = ("ood_min_foreground", "ood_repeat_threshold")
    return ", ".join(f"config.data.{key}={data_config[key]}" for key in keys if data_config[key])


def select_images(source: Source, data_config: Any, labels_dir: str | None, info: DatasetInfo) -> Selection | None:
    """Applies `ood_min_foreground` and `ood_repeat_threshold`; None if both are 0.

    Images without a label are not drawn. Repeats are computed from the images that remain.

    Args:
        source: The OOD set.
        data_config: The `data` section of the config.
        labels_dir: Folder of finished cached labels.
        info: The dataset, with its background class.

    Raises:
        InputError: A value is not in 0..1, there are no cached labels, or no image remains.
    """
    keys = filter_keys(data_config)
    if not keys:
        return None
    if not (0 <= data_config.ood_min_foreground <= 1 and 0 <= data_config.ood_repeat_threshold <= 1):
        raise InputError(f"{keys}: these are shares; set values from 0 (off) to 1")
    if labels_dir is None:
        raise InputError(f"{keys}: needs cached OVS labels; set config.ovs.labels='cached', or these keys to 0")
    labels, ids = read_class_pixels(Path(labels_dir)), source.ids()
    rows = {id_: row for row, id_ in enumerate(labels.ids)}
    positions = np.array([index for index, id_ in enumerate(ids) if id_ in rows], np.int64)
    pixels = labels.pixels[[rows[ids[index]] for index in positions]].astype(np.int64)
    foreground = pixels[:, [index for index in range(info.num_classes) if index != info.background]]
    share = foreground.sum(axis=1) / np.maximum(pixels.sum(axis=1), 1)
    kept = share >= data_config.ood_min_foreground
    if not kept.any():
        raise InputError(
            f"config.data.ood_min_foreground={data_config.ood_min_foreground}: none of the {len(ids)} OOD images has "
            f"that share of foreground, the largest is {share.max(initial=0.0):.3f}; lower the value"
        )
    threshold = data_config.ood_repeat_threshold
    return Selection(positions[kept], repeat_factors(foreground[kept], threshold) if threshold else None)


def repeat_factors(pixels: np.ndarray, threshold: float) -> np.ndarray:
    """How often to draw each image relative to the others, so that rare classes appear more often.

    The factor of a class is max(1, sqrt(threshold / share of images with the class)). The factor of an image is that of
    its rarest class. This is the repeat factor sampling of LVIS (arXiv 1908.03195).

    Args:
        pixels: [N, C], pixels of each class in each image.
        threshold: Share of the images below which a class is drawn more often.

    Returns:
        float64 [N], 1 or more.
    """
    present = pixels > 0
    share = np.maximum(present.mean(axis=0), 1 / max(len(pixels), 1))
    by_class = np.sqrt(np.maximum(1.0, threshold / share))
    return np.where(present, by_class, 1.0).max(axis=1, initial=1.0)
