"""A new user's first hour: photographs, masks and lists of their own, from the check to a served model.

Only commands, documented flags and files. Where a command prints the next one, that line is what runs next.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.compilation import FAST_COMPILATION

ROOT = Path(__file__).parents[1]
CLASSES = ("grass", "gravel", "brick")
TINTS = ((0.6, 1.0, 0.5), (1.0, 0.95, 0.9), (1.0, 0.55, 0.45))
LABELED, VAL, UNLABELED = 9, 3, 30

DATA = ("--config=configs/custom.py", "--config.data.root=yard")
# For a CPU and a short run; each key is in `train --help`.
SETTINGS = (
    "--config.model.backbone=resnet_tiny",
    "--config.data.crop_size=65",
    "--config.batch_size=4",
    "--config.eval.max_shapes=1",
    "--config.optim.learning_rate=0.02",
    "--config.optim.head_multiplier=1",
    "--config.train.steps=30",
    "--config.train.eval_every_steps=30",
    "--config.train.log_every_steps=10",
    "--config.train.panel_images=0",
)


class User:
    """Works in a folder outside the checkout, and types commands."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": FAST_COMPILATION,
        }

    def run(self, *command: str, status: int = 0, **environment: str) -> tuple[list[str], list[str]]:
        """The lines of stdout and stderr of a command of Python."""
        done = subprocess.run(
            [sys.executable, *command],
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout.splitlines(), done.stderr.splitlines()

    def semiovs(self, *command: str, status: int = 0) -> tuple[list[str], list[str]]:
        return self.run("-m", "semiovs_jax", *command, status=status)


def copied(line: str, **filled: str) -> list[str]:
    """The arguments of a command that was printed after "next: " or "or: ", with words that a user fills in."""
    python, m, package, *arguments = shlex.split(line.partition(": ")[2])
    assert (python, m, package) == ("python", "-m", "semiovs_jax")
    for word, value in filled.items():
        assert any(argument.endswith(f"={word}") for argument in arguments), line
        arguments = [
            argument.removesuffix(word) + value if argument.endswith(f"={word}") else argument for argument in arguments
        ]
    return arguments


def draw(rng: np.random.Generator, textures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of a brick wall above grass and gravel, and its mask."""
    height, width = (int(side) for side in rng.integers((80, 100), (120, 150)))
    mask = np.zeros((height, width), np.uint8)
    mask[:, int(width * rng.uniform(0.3, 0.7)) :] = 1
    mask[: int(height * rng.uniform(0.3, 0.6))] = 2
    image = np.zeros((height, width, 3))
    for index, (texture, tint) in enumerate(zip(textures, TINTS, strict=True)):
        top, left = rng.integers(0, np.array(texture.shape) - (height, width))
        part = texture[top : top + height, left : left + width, None] * np.array(tint)
        image = np.where(mask[..., None] == index, part, image)
    return image.clip(0, 255).astype(np.uint8), mask


def write_yard(root: Path) -> None:
    """What a user brings: JPEG photographs, PNG masks of the first of them, text lists, a class list."""
    rng = np.random.default_rng(0)
    textures = [skimage.data.grass(), skimage.data.gravel(), skimage.data.brick()]
    for name in ("photos", "masks", "splits"):
        (root / name).mkdir(parents=True)
    names = [f"{number:02d}" for number in range(LABELED + VAL + UNLABELED)]
    for number, name in enumerate(names):
        image, mask = draw(rng, textures)
        Image.fromarray(image).save(root / "photos" / f"{name}.jpg", quality=90)
        if number < LABELED + VAL:
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    pairs = [f"photos/{name}.jpg masks/{name}.png\n" for name in names]
    (root / "splits" / "labeled.txt").write_text("".join(pairs[:LABELED]))
    (root / "splits" / "val.txt").write_text("".join(pairs[LABELED : LABELED + VAL]))
    (root / "splits" / "unlabeled.txt").write_text("".join(f"photos/{name}.jpg\n" for name in names[LABELED + VAL :]))
    classes = {"name": "yard", "classes": CLASSES, "ignore_index": 255, "background": None}
    (root / "classes.json").write_text(json.dumps(classes))
    (root.parent / "new").mkdir()
    for name in ("a", "b"):
        Image.fromarray(draw(rng, textures)[0]).save(root.parent / "new" / f"{name}.jpg")


@pytest.mark.slow
def test_a_new_users_hour(tmp_path: Path):
    user = User(tmp_path)
    write_yard(tmp_path / "yard")

    # Weights and OOD images are missing; the report names the flags that do without.
    report, _ = user.semiovs("check_data", *DATA, *SETTINGS, status=1)
    faults = report[report.index("faults") + 1 : -2]
    assert report[-1] == f"{len(faults)} faults"
    assert [re.split("[=:]", fault)[0].strip() for fault in faults] == [
        "config.model.weights",
        "config.ovs.weights",
        "config.ovs.vocabulary",
        "config.data.ood_root",
    ]
    without = [fault.split()[-1] for fault in faults[:2]]
    assert without == ["--config.model.random_init=True", "--config.method.ood=none"]

    report, told = user.semiovs("check_data", *DATA, *SETTINGS, *without)
    assert report[-1] == "usable"
    counts = {words[0]: int(words[1]) for line in report if len(words := line.split()) > 6 and words[1].isdigit()}
    assert [counts[split] for split in ("labeled", "unlabeled", "val")] == [LABELED, UNLABELED, VAL]

    *_, last = told
    _, told = user.semiovs(*copied(last, RUN="runs/yard"))
    steps = [line.split(":")[0] for line in told if line.startswith("step ")]
    assert steps == ["step 10/30", "step 20/30", "step 30/30", "step 30"]
    written, evaluates, predicts = told[-3:]
    assert written.startswith("the run is in runs/yard: ")
    for name in written.partition(": ")[2].split(", "):
        assert (tmp_path / "runs" / "yard" / name).exists()

    table, told = user.semiovs(*copied(evaluates))
    scores = {name: float(value) for name, value in (line.split() for line in table if line.startswith(CLASSES))}
    assert set(scores) == set(CLASSES)
    assert min(scores.values()) > 50  # of 100: it has learned
    page = told[-2].removeprefix("wrote ")
    assert "brick" in Path(page).read_text(encoding="utf-8")
    assert copied(told[-1]) == copied(predicts)

    done, _ = user.semiovs(*copied(told[-1], IMAGES="new", FOLDER="found"))
    assert done[0] == "2 images predicted, 0 were there, 0 cannot be used"
    assert (tmp_path / done[-1].rpartition("open ")[2]).is_file()
    with (tmp_path / "found" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["new/a.jpg", "new/b.jpg"]

    done, _ = user.semiovs("export", "--workdir=runs/yard", "--format=stablehlo", "--out=exported")
    assert [line for line in done if line.startswith("wrote ")] == [
        "wrote exported/model.stablehlo",
        "wrote exported/manifest.json",
    ]

    served, imports = user.run(
        "-X", "importtime", str(ROOT / "docs" / "serve.py"), "exported", "new/a.jpg", "served.png", PYTHONPATH=""
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
    assert "jax" in imported
    assert not imported & {"semiovs_jax", "data_pipelines", "flax"}
    assert all(name in served[0] for name in CLASSES)
    label = np.asarray(Image.open(tmp_path / "served.png"))
    assert (label == np.asarray(Image.open(tmp_path / "found" / rows[0]["label"]))).mean() > 0.999
