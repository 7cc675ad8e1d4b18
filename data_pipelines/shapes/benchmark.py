"""Writes the embedded benchmark "shapes": a small semi-supervised segmentation task in the layout of VOC.

    python -m data_pipelines.shapes --root=data/shapes

The target domain (`JPEGImages`, `SegmentationClass`, `splits`) has background and eight shape classes. The
out-of-distribution (OOD) domain (`ood/JPEGImages`) has the same classes in another style, and distractor classes.
Distractors are background for the target vocabulary, as COCO's elephants are for VOC. `drawing` defines the classes;
the labeled images are too few to learn them, although each class is in one of them.

`ood/SegmentationClassFull` holds the labels of the OOD images over target and distractor classes. It serves only to
measure pseudo-labels: no training method may read it.

`--start` writes images with other classes, on which the shipped start of the students was trained.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.errors import InputError
from data_pipelines.shapes.drawing import (
    IGNORE_INDEX,
    OOD_DOMAIN,
    START_DOMAIN,
    TARGET_DOMAIN,
    Domain,
    draw_scene,
)
from data_pipelines.shapes.outlines import TARGETS
from data_pipelines.sources.records import File
from data_pipelines.splits.balanced import classes_present, draw_balanced

MANIFEST = "manifest.json"
_VERSION = 3  # of the drawing: raise it if equal seeds give other images than before
_STREAMS = ("train", "val", "ood", "ovs", "start")


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """The size of the benchmark.

    Attributes:
      labeled: training images in `splits/labeled.txt`; eight show each class.
      unlabeled: further training images, in `splits/unlabeled.txt`.
      val: validation images in `splits/val.txt`.
      ood: out-of-distribution images.
      jpeg_quality: quality of the written JPEG files, 1 to 95.
    """

    labeled: int = 8
    unlabeled: int = 504
    val: int = 100
    ood: int = 400
    jpeg_quality: int = 92


@dataclasses.dataclass(frozen=True)
class StartSpec:
    """The size of the images for the start of the students.

    Attributes:
      labeled: training images.
      val: validation images.
      jpeg_quality: quality of the written JPEG files, 1 to 95.
    """

    labeled: int = 3000
    val: int = 100
    jpeg_quality: int = 92


def scene_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random generator of one scene. Scenes of different streams are independent for every seed.

    Args:
      seed: seed of the benchmark, or of the OVS training.
      stream: "train", "val", "ood", "start", or "ovs" for images in no split.
      index: number of the scene in its stream.
    """
    return np.random.default_rng([seed, _STREAMS.index(stream), index])


def write_shapes(root: str | Path, spec: ShapesSpec | None = None, seed: int = 0) -> dict[str, Any]:
    """Writes the benchmark below `root`; does nothing if it already exists.

    The tree is written beside `root` and renamed at the end, so that `root` is complete or absent.

    Args:
      root: folder to create; it may exist if it is empty or holds the same benchmark.
      spec: sizes; the defaults if None.
      seed: not negative. An image depends only on the seed, its stream and its number, so a larger spec
        keeps the images of a smaller one.

    Returns:
      The manifest, as written to `root/manifest.json`.

    Raises:
      InputError: `root` holds other data, or a size or the seed is out of range.
    """
    spec = spec or ShapesSpec()
    return _write_once(Path(root), "shapes", spec, seed, lambda partial: _write_tree(partial, spec, seed))


def write_start(root: str | Path, spec: StartSpec | None = None, seed: int = 0) -> dict[str, Any]:
    """Does the same as `write_shapes` for the images on which the shipped start of the students was trained.

    They are in `JPEGImages`, `SegmentationClass`, `splits/labeled.txt` and `splits/val.txt`; their dataset is
    "shapes_start".
    """
    spec = spec or StartSpec()
    return _write_once(Path(root), "shapes_start", spec, seed, lambda partial: _write_start_tree(partial, spec, seed))


def _write_once(
    root: Path, name: str, spec: ShapesSpec | StartSpec, seed: int, write_tree: Callable[[Path], None]
) -> dict[str, Any]:
    sizes = dataclasses.asdict(spec)
    manifest = {"name": name, "version": _VERSION, "seed": seed, "spec": sizes}
    if faults := [f"{key}={value}" for key, value in sizes.items() if value < 1]:
        raise InputError(f"the {name} benchmark needs sizes of at least 1, got {', '.join(faults)}")
    if seed < 0:
        raise InputError(f"the {name} benchmark needs a seed of at least 0, got {seed}")
    if root.exists():
        if _read_manifest(root) == manifest:
            return manifest
        if not root.is_dir() or any(root.iterdir()):
            raise InputError(
                f"{root}: holds data that is not the {name} benchmark with seed {seed} and {spec}; "
                f"name another root or remove this one"
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        partial = Path(folder) / root.name
        write_tree(partial)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:  # another process was faster
            if _read_manifest(root) != manifest:
                raise
    return manifest


def outdated(root: Path) -> str | None:
    """A message if `root` holds the benchmark as another version of this package has drawn it."""
    manifest = _read_manifest(root)
    if not isinstance(manifest, dict) or manifest.get("name") != "shapes" or manifest.get("version") == _VERSION:
        return None
    return (
        f"{root}: holds version {manifest.get('version')} of the shapes benchmark, this package draws version "
        f"{_VERSION}, which the shipped weights know; remove the folder, or name another one"
    )


def _read_manifest(root: Path) -> Any:
    try:
        return json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_tree(root: Path, spec: ShapesSpec, seed: int) -> None:
    images, labels, ood = root / "JPEGImages", root / "SegmentationClass", root / "ood"
    scenes = _Scenes(seed, spec.jpeg_quality, dataset_info("shapes"))
    train = scenes.write(images, labels, TARGET_DOMAIN, "train", spec.labeled + spec.unlabeled)
    val = scenes.write(images, labels, TARGET_DOMAIN, "val", spec.val)
    labeled, unlabeled = draw_labeled(root, train, spec.labeled, seed)
    write_split(root, "labeled", labeled)
    write_split(root, "unlabeled", unlabeled)
    write_split(root, "val", val)
    scenes.write(ood / "JPEGImages", ood / "SegmentationClassFull", OOD_DOMAIN, "ood", spec.ood)


def draw_labeled(root: Path, ids: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Draws the labeled images among the training images, class-balanced; see `splits.balanced`.

    Args:
      root: of the benchmark.
      ids: of the training images.
      count: number of labeled images.
      seed: of the benchmark.

    Returns:
      The labeled and the other ids, in their order. Those of a smaller number are among those of a larger one.
    """
    labels = [File(root / "SegmentationClass" / f"{key}.png") for key in ids]
    drawn = set(draw_balanced(classes_present(labels, dataset_info("shapes"))[:, 1:], count, seed).tolist())
    labeled = [key for index, key in enumerate(ids) if index in drawn]
    return labeled, [key for index, key in enumerate(ids) if index not in drawn]


def _write_start_tree(root: Path, spec: StartSpec, seed: int) -> None:
    scenes = _Scenes(seed, spec.jpeg_quality, dataset_info("shapes_start"), first_class=1 + len(TARGETS))
    folders = root / "JPEGImages", root / "SegmentationClass"
    ids = scenes.write(*folders, START_DOMAIN, "start", spec.labeled + spec.val)
    write_split(root, "labeled", ids[: spec.labeled])
    write_split(root, "val", ids[spec.labeled :])


def write_split(root: Path, name: str, ids: Sequence[str]) -> None:
    """Writes the list `splits/NAME.txt` of a benchmark: images and their labels."""
    path = root / "splits" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"JPEGImages/{key}.jpg SegmentationClass/{key}.png\n" for key in ids), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class _Scenes:
    """Writes scenes.

    Attributes:
      seed: of all scenes.
      jpeg_quality: of the images.
      dataset: has the palette of the labels.
      first_class: index in `SCENE_CLASSES` of the class that is 1 in the labels.
    """

    seed: int
    jpeg_quality: int
    dataset: DatasetInfo
    first_class: int = 1

    def write(self, images: Path, labels: Path, domain: Domain, stream: str, count: int) -> list[str]:
        """Writes the first scenes of a stream; returns their ids."""
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        palette = self.dataset.palette.ravel().tolist()
        ids = [f"{stream}_{index:06d}" for index in range(count)]
        for index, key in enumerate(ids):
            image, label = draw_scene(scene_rng(self.seed, stream, index), domain)
            label[(label >= self.first_class) & (label != IGNORE_INDEX)] -= self.first_class - 1
            Image.fromarray(image).save(images / f"{key}.jpg", quality=self.jpeg_quality)
            plane = Image.fromarray(label, mode="P")
            plane.putpalette(palette)
            plane.save(labels / f"{key}.png")
        return ids
