"""`configs/voc92.py` on a VOC-layout tree with real photographs: runs, is killed, goes on bit for bit.

Images and crops are small, for the sake of two cores; VOC92_TEST_CROP=321 runs the test with the published crops.
"""

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imgviz
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import skimage.data
from flax import nnx
from PIL import Image

from configs import voc92
from data_pipelines.datasets import voc_palette
from semiovs_jax.models import Functional, build_student
from semiovs_jax.runtime.command import CPU_FLAGS
from semiovs_jax.weights.files import save_weights
from semiovs_jax.weights.keys import flatten
from tests.compilation import FAST_COMPILATION
from tests.ovs import tiny_sed

ROOT = Path(__file__).parents[1]
SIZE = (250, 188)  # width, height
CROP_SIZE = int(os.environ.get("VOC92_TEST_CROP", "65"))


def _photographs() -> list[np.ndarray]:
    """A cat, motorcycles, a cup, a person, a rocket: uint8 [H, W, 3]."""
    left, right, _ = skimage.data.stereo_motorcycle()
    return [skimage.data.cat(), left, right, skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket()]


def _write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BILINEAR).save(path, quality=95)


def _write_label(path: Path, label: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    png = Image.fromarray(label.astype(np.uint8), "P")
    png.putpalette(voc_palette().ravel().tolist())
    png.resize(SIZE, Image.Resampling.NEAREST).save(path)


def _write_data(folder: Path) -> None:
    """The VOC photograph with its labels, and the others, as labeled, unlabeled, validation and OOD images."""
    voc = imgviz.data.voc()
    label = np.where(voc["class_label"] < 0, 255, voc["class_label"])
    photographs = _photographs()
    splits = {"92/labeled": [], "92/unlabeled": [], "val": []}

    def add(split: str, name: str, pixels: np.ndarray, label: np.ndarray) -> None:
        _write_image(folder / "pascal" / "JPEGImages" / f"{name}.jpg", pixels)
        _write_label(folder / "pascal" / "SegmentationClass" / f"{name}.png", label)
        splits[split].append(f"JPEGImages/{name}.jpg SegmentationClass/{name}.png")

    add("92/labeled", "2011_000006", voc["rgb"], label)
    add("92/labeled", "2011_000007", voc["rgb"][:, ::-1], label[:, ::-1])
    for i, pixels in enumerate(photographs):
        add("92/unlabeled", f"2012_{i:06d}", pixels, np.zeros(pixels.shape[:2], np.uint8))
        _write_image(folder / "coco" / "train2017" / f"{i:012d}.jpg", pixels[:, ::-1])
    for i, name in enumerate(("2011_000008", "2011_000009")):
        add("val", name, np.roll(voc["rgb"], 40 * (i + 1), axis=1), np.roll(label, 40 * (i + 1), axis=1))
    for split, lines in splits.items():
        path = folder / "pascal" / "splits" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def _write_weights(folder: Path) -> None:
    """A random backbone in the format of `semiovs_jax.convert`, and a tiny SED that reads bytes."""
    config = voc92.get_config()
    student = build_student(config.model, 21, image_size=config.data.crop_size, rngs=nnx.Rngs(0))
    _, params, batch_stats = Functional.create(student)
    values = {path: np.asarray(leaf) for path, leaf in (flatten(params) | flatten(batch_stats)).items()}
    backbone = {path: value for path, value in values.items() if path.startswith("backbone/")}
    save_weights(folder / "resnet101.safetensors", backbone, {"kind": "resnet", "source": "random"})
    sed = dataclasses.replace(
        tiny_sed.CONFIG,
        text=dataclasses.replace(tiny_sed.CONFIG.text, context_length=120),
        aggregator=dataclasses.replace(tiny_sed.CONFIG.aggregator, num_templates=80),
        short_side=48,
    )
    tiny_sed.write_sed(folder / "sed.safetensors", config=sed)


def _command(folder: Path, workdir: Path) -> list[str]:
    changes = {
        "batch_size": 2,
        "data.crop_size": CROP_SIZE,
        "data.root": folder / "pascal",
        "data.ood_root": folder / "coco" / "train2017",
        "model.weights": folder / "resnet101.safetensors",
        "ovs.weights": folder / "sed.safetensors",
        "ovs.image_size": 64,
        "ovs.labels_dir": folder / "labels",
        "train.steps": 3,
        "train.log_every_steps": 1,
        "train.eval_every_steps": 3,
        "train.checkpoint_every_steps": 2,
        "train.panel_images": 0,
        "eval.batch_size": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    return [
        sys.executable,
        "-m",
        "semiovs_jax.main",
        "--config=configs/voc92.py",
        f"--workdir={workdir}",
        *flags,
    ]


def _state(workdir: Path):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(workdir / "checkpoints" / "3" / "state")


@pytest.mark.slow
def test_voc92_killed_after_two_steps_equals_an_uninterrupted_run(tmp_path: Path):
    _write_data(tmp_path)
    _write_weights(tmp_path)
    # As in the other tests, without LLVM's optimizations, which take longer than they save in three steps.
    flags = f"{CPU_FLAGS} {FAST_COMPILATION}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(_command(tmp_path, whole), cwd=ROOT, env=environment)
    while not (whole / "checkpoints" / "2").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)  # what lies on the disk now is what a kill would leave
    shutil.copytree(whole, killed)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory {peak_gib:.1f} GiB")
    assert peak_gib < 16
    assert not (killed / "checkpoints" / "3").exists()

    subprocess.run(_command(tmp_path, killed), check=True, cwd=ROOT, env=environment)
    jax.tree.map(np.testing.assert_array_equal, _state(whole), _state(killed))
