"""A small OVS without trained weights, and calls to label with it, for tests."""

import contextlib
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.images.transforms import resize_image
from data_pipelines.labels.open_store import open_store
from data_pipelines.labels.store import LabelStore
from data_pipelines.loading.streams import open_config_split
from data_pipelines.sources.records import Source
from data_pipelines.sources.shard_files import shard_path, write_metadata, write_shard
from semiovs_jax.models.layers import inside, resize_bilinear
from semiovs_jax.ovs.base import OVS, PseudoLabel
from semiovs_jax.ovs.labeling import job
from semiovs_jax.ovs.labeling.identity import labels_identity
from semiovs_jax.ovs.labeling.images import LabelReport, label_images, labels_complete
from semiovs_jax.runtime.sharding import make_mesh

SHARD_RECORDS = 4  # of labels, in tests
NEVER = -1  # renames until a process kills itself


@dataclasses.dataclass
class ColorOVS:
    """Labels red, green and blue pixels as class 1, 2 and 3, dark pixels as background; gray has a low confidence."""

    fingerprint: str = "a" * 64
    image_size: int = 24
    num_classes: int = 21
    weights: Any = dataclasses.field(default_factory=lambda: {"gain": jnp.float32(1 / 32)})

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        return resize_image(image, (self.image_size, self.image_size))

    def label(self, weights: Any, image: jax.Array, *, label_size: tuple[int, int], size: jax.Array | None = None):
        scores = jnp.concatenate([jnp.full_like(image[..., :1], 80.0), image], axis=-1) * weights["gain"]
        resized = resize_bilinear(scores, label_size, align_corners=False, target_size=size)
        probabilities = jax.nn.softmax(resized, axis=-1)
        confidence = probabilities.max(-1)
        valid = confidence > 0.3
        if size is not None:
            valid &= inside(size, label_size)
        return PseudoLabel(probabilities.argmax(-1).astype(jnp.int32), confidence, valid)


def label_config(ood_root: Path, labels_dir: Path, **data: Any) -> ConfigDict:
    """The parts of a config that labeling reads."""
    return ConfigDict(
        {
            "data": {
                "dataset": "voc21",
                "ood_root": str(ood_root),
                "ood_split": "",
                "max_bad_records": 0,
                "num_threads": 2,
                **data,
            },
            "ovs": {
                "name": "color",
                "weights": "",
                "vocabulary": "voc21",
                "image_size": 24,
                "labels": "cached",
                "labels_dir": str(labels_dir),
                "batch_size": 6,
            },
        }
    )


def label(config: ConfigDict, ovs: OVS, mesh: Mesh | None = None, **share: int | None) -> LabelReport:
    """Labels the OOD images of a config, as `semiovs_jax.label` does."""
    source, store = _open(config, ovs)
    return label_images(
        source,
        ovs,
        store,
        mesh or make_mesh(),
        batch_size=config.ovs.batch_size,
        num_threads=config.data.num_threads,
        max_bad_records=config.data.max_bad_records,
        **share,
    )


def complete(config: ConfigDict, ovs: OVS) -> bool:
    """Whether the labels of a config are complete."""
    return labels_complete(*_open(config, ovs))


def _open(config: ConfigDict, ovs: OVS) -> tuple[Source, LabelStore]:
    source, dataset = open_config_split(config.data, "ood"), dataset_info(config.data.dataset)
    identity = labels_identity(config.ovs, ovs, dataset)
    return source, open_store(Path(config.ovs.labels_dir), identity, dataset, prepared=source.prepared)


def write_images(root: Path, count: int) -> None:
    """Writes colored images of several sizes, every third below a subfolder."""
    rng = np.random.default_rng(7)
    for i in range(count):
        size = (40 + 30 * (i % 2), 33 + 4 * (i % 5))  # two canvases
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        path = root / ("train" if i % 3 == 0 else ".") / f"{i:03d}.{'png' if i % 4 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)


def prepare_images(root: Path, folder: Path) -> None:
    """Writes the images below `root` as a prepared dataset of one shard in `folder`."""
    features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": tfds.features.Image()})
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    examples = [{"id": path.relative_to(root).with_suffix("").as_posix(), "image": path.read_bytes()} for path in paths]
    shard = write_shard(shard_path(folder, "images", "train", 0, 1), features, examples)
    write_metadata(folder, "images", features, {"train": [shard]})


def start_labeling(ood_root: Path, labels_dir: Path, index: int, count: int, *, renames: int) -> subprocess.Popen:
    """Starts a process that labels a share of the images and kills itself after a number of renames."""
    arguments = map(str, (ood_root, labels_dir, index, count, renames))
    return subprocess.Popen([sys.executable, "-m", "tests.fake_ovs", *arguments], stderr=subprocess.DEVNULL)


def assert_killed(process: subprocess.Popen, labels_dir: Path) -> None:
    """Waits for a process that kills itself; makes its partial files look old."""
    assert process.wait(timeout=300) == -signal.SIGKILL
    parts = list(labels_dir.rglob("*.part"))
    assert parts
    for part in parts:
        with contextlib.suppress(FileNotFoundError):  # of another process, which is alive
            os.utime(part, (0, 0))


def main() -> None:
    """Labels a share: python -m tests.fake_ovs OOD_ROOT LABELS_DIR INDEX COUNT RENAMES."""
    from data_pipelines.labels import shard_store as label_shard_store

    label_shard_store.FEWEST_RECORDS = SHARD_RECORDS
    job.IMAGES_A_CANVAS = 1  # as in tests/ovs/labeling/conftest.py
    root, folder, index, count, renames = sys.argv[1:]
    replace, done = Path.replace, itertools.count()

    def replace_or_die(*args: Any) -> Path:
        if next(done) == int(renames):
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(*args)

    Path.replace = replace_or_die
    config = label_config(Path(root), Path(folder))
    label(config, ColorOVS(), process_index=int(index), process_count=int(count))


if __name__ == "__main__":
    main()
