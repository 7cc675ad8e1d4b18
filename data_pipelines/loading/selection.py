"""Selects the OOD images to draw, and how often, by the classes in their cached OVS labels."""

from pathlib import Path
from typing import NamedTuple

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


class Filter(NamedTuple):
    """What the selection depends on; 0 is off.

    Attributes:
        min_foreground: `config.data.ood_min_foreground`: least share of an image that its label calls foreground.
        repeat_threshold: `config.data.ood_repeat_threshold`: classes in a smaller share of the images are drawn more
            often.
    """

    min_foreground: float
    repeat_threshold: float

    def __str__(self) -> str:
        """The keys that are on, with their values; "" if none is."""
        return ", ".join(f"config.data.ood_{key}={value}" for key, value in self._asdict().items() if value)


def filter_fault(keys: Filter, ood: str, labels: str) -> str | None:
    """What is wrong with filtering without cached labels.

    Args:
        keys: The filter.
        ood: `config.method.ood`.
        labels: `config.ovs.labels`.
    """
    if str(keys) and (ood != "ovs" or labels != "cached"):
        return (
            f"{keys}: these need cached OVS labels, but config.method.ood={ood!r} and config.ovs.labels={labels!r}; "
            "set them to 'ovs' and 'cached', or these to 0"
        )
    return None


def select_images(source: Source, keys: Filter, labels_dir: Path, info: DatasetInfo) -> Selection | None:
    """Applies a filter; None if it is off.

    Images without a label are not drawn. Repeats are computed from the images that remain.

    Args:
        source: The OOD set.
        keys: The filter.
        labels_dir: Folder of finished cached labels.
        info: The dataset, with its background class.

    Raises:
        InputError: The labels are not finished, or no image remains.
    """
    if not str(keys):
        return None
    labels, ids = read_class_pixels(labels_dir), source.ids()
    rows = {id_: row for row, id_ in enumerate(labels.ids)}
    positions = np.array([index for index, id_ in enumerate(ids) if id_ in rows], np.int64)
    pixels = labels.pixels[[rows[ids[index]] for index in positions]].astype(np.int64)
    foreground = pixels[:, [index for index in range(info.num_classes) if index != info.background]]
    share = foreground.sum(axis=1) / np.maximum(pixels.sum(axis=1), 1)
    kept = share >= keys.min_foreground
    if not kept.any():
        raise InputError(
            f"config.data.ood_min_foreground={keys.min_foreground}: none of the {len(ids)} OOD images has "
            f"that share of foreground, the largest is {share.max(initial=0.0):.3f}; lower the value"
        )
    threshold = keys.repeat_threshold
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
