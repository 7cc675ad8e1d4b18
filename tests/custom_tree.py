"""A user's own task: images of three invented classes in folders of the user's choice, a class list, a vocabulary."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("floor", "blob", "bar")
CONCEPTS = {"floor": ["floor", "wall"], "blob": [["blob", "spot"]], "bar": ["bar"]}
COUNTS = {"labeled": 3, "unlabeled": 4, "val": 2}
OOD = 5
SIZE = (40, 60)  # height, width


def write_custom(root: Path) -> Path:
    """Writes what `configs/custom.py` names below `root`, which stands for data/custom; returns `root`."""
    number = 0
    for split, count in COUNTS.items():
        lines = []
        for name in (f"{number + i:02d}" for i in range(count)):
            write_image(root / "photos" / f"{name}.jpg", int(name))
            write_label(root / "indices" / f"{name}.png", label())
            lines.append(f"photos/{name}.jpg indices/{name}.png")
        write_text(root / "splits" / f"{split}.txt", "\n".join(lines) + "\n")
        number += count
    for i in range(OOD):
        write_image(root / "ood" / "web" / f"{i}.jpg", 50 + i)
    write_text(
        root / "classes.json", json.dumps({"name": "custom", "classes": CLASSES, "ignore_index": 255, "background": 0})
    )
    write_vocabulary(root, CONCEPTS)
    return root


def label() -> np.ndarray:
    """Ten columns of each thing, two of ignored pixels, floor elsewhere; uint8 [H, W]."""
    plane = np.zeros(SIZE, np.uint8)
    plane[:, 10:20] = 1
    plane[:, 30:40] = 2
    plane[:, 40:42] = 255
    return plane


def write_image(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (60.0 * label()[..., None] + rng.normal(80, 20, (*SIZE, 3))).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_label(path: Path, plane: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plane).save(path)


def write_vocabulary(root: Path, concepts: dict) -> None:
    classes = [{"name": name, "concepts": words} for name, words in concepts.items()]
    content = {"name": "custom", "source": "a test", "templates": ["a photo of a {}", "a {}"], "classes": classes}
    write_text(root / "vocabulary.json", json.dumps(content))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
