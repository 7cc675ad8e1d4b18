"""Writes the embedded benchmark "shapes": a small semi-supervised segmentation task in the layout of VOC.

    python -m data_pipelines.shapes --root=data/shapes --seed=0

The target domain (`JPEGImages`, `SegmentationClass`, `splits`) has background and eight shape classes. The
out-of-distribution (OOD) domain (`ood/JPEGImages`) has the same classes in another style, and distractor classes.
Distractors are background for the target vocabulary, as COCO's elephants are for VOC. `drawing` defines the classes;
the labeled images are too few to learn them.

`ood/SegmentationClassFull` holds the labels of the OOD images over target and distractor classes. It serves only to
measure pseudo-labels: no training method may read it.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.shapes.drawing import OOD_DOMAIN, TARGET_DOMAIN, Domain, draw_scene

MANIFEST = "manifest.json"
_VERSION = 2  # of the drawing: raise it if equal seeds give other images than before
_STREAMS = ("train", "val", "ood", "ovs")


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """The size of the benchmark.

    Attributes:
      labeled: training images in `splits/labeled.txt`.
      unlabeled: further training images, in `splits/unlabeled.txt`.
      val: validation images in `splits/val.txt`.
      ood: out-of-distribution images.
      jpeg_quality: quality of the written JPEG files, 1 to 95.
    """

    labeled: int = 12
    unlabeled: int = 500
    val: int = 100
    ood: int = 400
    jpeg_quality: int = 92


def scene_rng(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random generator of one scene. Scenes of different streams are independent for every seed.

    Args:
      seed: seed of the benchmark, or of the OVS training.
      stream: "train", "val", "ood", or "ovs" for images in no split.
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
    root, spec = Path(root), spec or ShapesSpec()
    sizes = dataclasses.asdict(spec)
    manifest = {"name": "shapes", "version": _VERSION, "seed": seed, "spec": sizes}
    if faults := [f"{name}={value}" for name, value in sizes.items() if value < 1]:
        raise InputError(f"the shapes benchmark needs sizes of at least 1, got {', '.join(faults)}")
    if seed < 0:
        raise InputError(f"the shapes benchmark needs a seed of at least 0, got {seed}")
    if root.exists():
        if _read_manifest(root) == manifest:
            return manifest
        if not root.is_dir() or any(root.iterdir()):
            raise InputError(
                f"{root}: holds data that is not the shapes benchmark with seed {seed} and {spec}; "
                f"name another root or remove this one"
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as folder:
        partial = Path(folder) / root.name
        _write_tree(partial, spec, seed)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        try:
            partial.rename(root)
        except OSError:  # another process was faster
            if _read_manifest(root) != manifest:
                raise
    return manifest


def _read_manifest(root: Path) -> Any:
    try:
        return json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_tree(root: Path, spec: ShapesSpec, seed: int) -> None:
    splits = root / "splits"
    splits.mkdir(parents=True)
    images, labels = root / "JPEGImages", root / "SegmentationClass"
    train = _write_scenes(images, labels, TARGET_DOMAIN, "train", spec.labeled + spec.unlabeled, spec, seed)
    val = _write_scenes(images, labels, TARGET_DOMAIN, "val", spec.val, spec, seed)
    for name, ids in (
        ("labeled", train[: spec.labeled]),
        ("unlabeled", train[spec.labeled :]),
        ("val", val),
    ):
        lines = [f"JPEGImages/{key}.jpg SegmentationClass/{key}.png\n" for key in ids]
        (splits / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    ood = root / "ood"
    _write_scenes(ood / "JPEGImages", ood / "SegmentationClassFull", OOD_DOMAIN, "ood", spec.ood, spec, seed)


def _write_scenes(
    images: Path, labels: Path, domain: Domain, stream: str, count: int, spec: ShapesSpec, seed: int
) -> list[str]:
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    palette = dataset_info("shapes").palette.ravel().tolist()
    ids = [f"{stream}_{index:06d}" for index in range(count)]
    for index, key in enumerate(ids):
        image, label = draw_scene(scene_rng(seed, stream, index), domain)
        Image.fromarray(image).save(images / f"{key}.jpg", quality=spec.jpeg_quality)
        plane = Image.fromarray(label, mode="P")
        plane.putpalette(palette)
        plane.save(labels / f"{key}.png")
    return ids
