"""A builder whose units the tests say, commands that are killed, and datasets compared by their files."""

import functools
import io
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.builders.base import ImageBuilder
from data_pipelines.builders.leakage import EvaluationImages
from data_pipelines.builders.samples import BadFile, Sample, Unit
from data_pipelines.builders.units import Preparation
from data_pipelines.errors import InputError

KILLED = """
import importlib, os, signal, sys
from data_pipelines.builders.base import ImageBuilder

command, images = importlib.import_module(sys.argv.pop(1)), int(sys.argv.pop(1))
written, example = 0, ImageBuilder.example

def killed(self, sample):
    global written
    written += 1
    if written == images:
        os.kill(os.getpid(), signal.SIGKILL)
    return example(self, sample)

ImageBuilder.example = killed
command.main()
"""


class Toy(ImageBuilder, skip_registration=True):
    """Images; units are given beside it."""

    VERSION = tfds.core.Version("1.0.0")

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """None of its own."""
        return {}


def image(seed: int) -> bytes:
    """An encoded image of its own."""
    stream = io.BytesIO()
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(blocks).resize((40, 30)).save(stream, "PNG")
    return stream.getvalue()


def samples(seeds: range, bad: tuple[str, ...] = (), fault: Path | None = None) -> Iterator[Sample | BadFile]:
    """Images with seeds for ids, then bad files; while the file `fault` is there, what it says is raised instead."""
    for seed in seeds:
        yield Sample(f"{seed}", image(seed))
    yield from (BadFile(name, "is broken") for name in bad)
    if fault is not None and fault.exists():
        kind = {"input": InputError, "crash": RuntimeError}[fault.read_text()]
        raise kind(f"{fault}: do mend it")


def unit(name: str, *seeds: int, bad: tuple[str, ...] = (), fault: Path | None = None) -> Unit:
    """A unit of the images from the first to before the last seed."""
    return Unit(name, functools.partial(samples, range(*seeds), bad, fault))


def preparation(folder: Path, source: str = "here", evaluation: EvaluationImages | None = None) -> Preparation:
    """Of `Toy` below `folder`."""
    builder = Toy(data_dir=str(folder))
    return Preparation(builder, Path(builder.data_path), {"source": source}, evaluation)


def run_killed(command: str, images: int, flags: Sequence[str]) -> None:
    """Runs the command of a module, which dies by SIGKILL as it writes its image number `images`."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, command, str(images), *flags], check=False, capture_output=True, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
