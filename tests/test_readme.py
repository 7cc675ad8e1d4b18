"""The README: short, with commands that run, links that exist, and the commands' names."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.shapes.benchmark import write_shapes
from semiovs_jax.__main__ import find_commands
from tests.compilation import FAST_COMPILATION
from tests.custom_tree import write_custom
from tests.documented import PAGES, README, ROOT, commands, section
from tests.experiment import SPEC

# What needs a download, or is this test.
NOT_RUN_HERE = {
    "semiovs_jax.fetch",
    "semiovs_jax.convert",
    "data_pipelines.splits",
    "--config=configs/voc92.py",
    "pytest",
}

# Changes of the configs: what compiles fast and needs no weights, and few steps.
SMALL = {"method.name": "supervised", "method.ood": "none", "model.backbone": "resnet_tiny", "model.random_init": True}
TINY = {
    "batch_size": 2,
    "data.crop_size": 33,
    "data.num_threads": 2,
    "train.steps": 2,
    "train.panel_images": 0,
    "eval.batch_size": 2,
    "eval.max_shapes": 1,
}


def test_it_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_short_names_of_commands():
    rows = re.findall(r"^\| `(semiovs_jax\.\w+)` \|.*\| `semiovs (\w+)` \|$", section(README, "Commands"), re.MULTILINE)
    found = {name: command.module for name, command in find_commands().items()}
    assert {name: module for module, name in rows} == found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "data_pipelines" / "README.md"], ids=lambda path: path.name)
def test_links_exist(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"(?<!!)\[[^\]]+\]\((?!https?:)([^)#]*)", text)
    assert not [link for link in links if link and not (page.parent / link).exists()]


@pytest.mark.long
@pytest.mark.slow
def test_commands_run_in_their_order(tmp_path: Path):
    write_shapes(tmp_path / "data" / "shapes", SPEC)
    write_custom(tmp_path / "data" / "custom")
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photo.jpg", tmp_path / "photos" / "1.jpg"):
        Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")

    ran = [command for command in commands(README) if command[0].endswith("python") and not NOT_RUN_HERE & {*command}]
    for command in ran:
        _run([sys.executable, *command[1:], *_shortened(command)], tmp_path)
    told = [command[2] if command[1] == "-m" else command[1] for command in ran]
    assert told == [
        "semiovs_jax.main",
        "semiovs_jax.check_data",
        "semiovs_jax.main",
        "semiovs_jax.evaluate",
        "semiovs_jax.predict",
        "semiovs_jax.export",
        "docs/serve.py",
    ]
    assert (tmp_path / "runs" / "demo" / "table.txt").exists()
    assert (tmp_path / "predictions" / "labels" / "1.png").exists()
    assert (tmp_path / "labels.png").exists()

    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    training = re.findall(r"^semiovs_jax\.train.*$", code, re.MULTILINE)
    assert len(training) == 1
    _run([sys.executable, "-c", code.replace(training[0], "")], tmp_path)


def _shortened(command: list[str]) -> list[str]:
    """Flags that make training tiny, and need no weights."""
    if "semiovs_jax.main" in command:
        return [f"--config.{key}={value}" for key, value in (SMALL | TINY).items()]
    return [f"--config.{key}={value}" for key, value in SMALL.items()] if "semiovs_jax.check_data" in command else []


def _run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILATION}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
