import functools
import pickle
import re
from pathlib import Path

import grain
import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images import transforms
from data_pipelines.labels import external
from data_pipelines.labels.cache import LabeledSource
from data_pipelines.labels.external import external_faults, missing_confidence, open_external_labels
from data_pipelines.loading.worker_log import BadRecords, HeldRecords
from data_pipelines.pipeline import _View
from data_pipelines.sources.folders import FolderSource, open_images
from tests.data_pipelines.tree import write_cached_labels, write_label, write_tree

IDS = ["000", "002", "004", "train/001", "train/003"]
INFO = dataset_info("voc21")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Labels with confidences, in the folder that `check` reads."""
    write_tree(tmp_path)
    write_cached_labels(tmp_path, tmp_path / "external", IDS)
    return tmp_path / "external"


def images(folder: Path) -> FolderSource:
    return open_images(folder.parent / "ood", "", ("root", "split"))


def check(folder: Path) -> dict[str, str]:
    """Messages by kind, without the path of the folder."""
    faults = external_faults(open_external_labels(folder), images(folder), INFO, num_threads=2)
    assert len({fault.kind for fault in faults}) == len(faults)
    for fault in faults:
        assert fault.file in fault.message
    return {fault.kind: fault.message.replace(f"{folder}/", "") for fault in faults}


def remove_confidences(folder: Path) -> None:
    for path in (folder / "confidence").rglob("*.png"):
        path.unlink()


def move_labels(folder: Path) -> None:
    """Moves the labels directly below the folder."""
    for path in list((folder / "labels").iterdir()):
        path.rename(folder / path.name)
    (folder / "labels").rmdir()


@pytest.mark.parametrize("change", [lambda folder: None, remove_confidences, move_labels])
def test_complete_labels_have_no_faults(folder, change):
    change(folder)
    cache = pickle.loads(pickle.dumps(open_external_labels(folder)))
    assert check(folder) == {}
    assert all(map(cache.is_labeled, IDS))
    assert not cache.is_labeled("001")
    assert (cache.bad, cache.faults()) == ({}, [])
    label, confidence = cache.planes("train/001")
    assert np.unique(Image.open(label.path)).tolist() == [3]
    assert (confidence is None) == (change is remove_confidences)


def test_labels_of_this_project_are_refused(folder):
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json: .*set config\.ovs\.labels='cached', or remove the manifest"):
        open_external_labels(folder)
    with pytest.raises(InputError, match=r"config\.ovs\.labels_dir=.*nowhere: no such folder; set it to"):
        open_external_labels(folder / "nowhere")


def test_missing_labels_are_counted_and_the_first_named(folder, monkeypatch):
    monkeypatch.setattr(external, "_FEW", 2)
    monkeypatch.setattr(external, "_CHUNK", 2)
    for id_ in IDS[:4]:
        (folder / "labels" / f"{id_}.png").unlink()
    (folder.parent / "ood/002.jpg").write_bytes(b"no image")  # needs no label
    found = check(folder)
    assert found.keys() == {"missing"}
    assert found["missing"].startswith("labels: 3 of 5 OOD images have no label; write a label for each image, or list")
    assert found["missing"].endswith("labels/000.png; labels/004.png; and 1 more")


def test_an_unreadable_image_with_a_label_is_left_to_the_check_of_the_images(folder):
    (folder.parent / "ood/002.jpg").write_bytes(b"no image")
    assert check(folder) == {}


def test_an_unreadable_image_without_a_label_needs_no_confidence(folder):
    remove_confidences(folder)
    (folder.parent / "ood/002.jpg").write_bytes(b"no image")
    (folder / "labels/002.png").unlink()
    assert check(folder) == {}


def save(path: Path, plane: np.ndarray, mode: str = "L") -> None:
    Image.fromarray(plane).convert(mode).save(path)


def size_of(folder: Path, id_: str) -> tuple[int, int]:
    with Image.open(folder.parent / "ood" / f"{id_}.jpg") as image:
        return image.height, image.width


def rgb_label(folder: Path) -> None:
    save(folder / "labels/000.png", np.zeros(size_of(folder, "000"), np.uint8), "RGB")


def mask_label(folder: Path) -> None:
    plane = np.zeros(size_of(folder, "002"), np.uint8)
    plane[3:] = 255
    save(folder / "labels/002.png", plane)


def large_index(folder: Path) -> None:
    write_label(folder / "labels/004.png", np.full(size_of(folder, "004"), 21, np.uint8))


def small_label(folder: Path) -> None:
    write_label(folder / "labels/train/001.png", np.zeros((9, 8), np.uint8))


def damaged_label(folder: Path) -> None:
    path = folder / "labels/train/003.png"
    path.write_bytes(path.read_bytes()[:60])


def color_confidence(folder: Path) -> None:
    save(folder / "confidence/000.png", np.zeros(size_of(folder, "000"), np.uint8), "RGB")


def large_confidence(folder: Path) -> None:
    save(folder / "confidence/002.png", np.zeros((70, 80), np.uint8))


def damaged_confidence(folder: Path) -> None:
    (folder / "confidence/004.png").write_bytes(b"")


def some_confidences(folder: Path) -> None:
    (folder / "confidence/train/001.png").unlink()


DAMAGES = [
    (rgb_label, "mode", r"labels/000\.png: label image has mode RGB, expected class indices .*map its colors"),
    (mask_label, "mask", r"labels/002\.png: .*only the values 0 and 255"),
    (large_index, "range", r"labels/004\.png: label 21 is out of range \(\d+ pixels .*classes 0\.\.20"),
    (small_label, "size", r"train/001\.png: label is 8x9 .* write the label at the size of its image"),
    (damaged_label, "unreadable", r"train/003\.png: is damaged .*; write the file again"),
    (color_confidence, "confidence mode", r"confidence/000\.png: .*mode RGB, expected 8-bit gray \(L\); save"),
    (large_confidence, "size", r"confidence/002\.png: confidence is 80x70 .*write the confidence at the size"),
    (damaged_confidence, "unreadable", r"confidence/004\.png: is damaged .*; write the file again"),
    (
        some_confidences,
        "confidence missing",
        r"1 labels have no confidence, 4 have one; write one .* or remove the folder .*confidence/train/001\.png$",
    ),
]


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES, ids=[damage.__name__ for damage, _, _ in DAMAGES])
def test_a_fault_names_the_file_and_what_to_do(folder, damage, kind, message):
    damage(folder)
    found = check(folder)
    assert found.keys() == {kind}
    assert re.search(message, found[kind])


def test_all_faults_are_found_at_once(folder):
    for damage, _, _ in DAMAGES:
        damage(folder)
    found = check(folder)
    assert found.keys() == {kind for _, kind, _ in DAMAGES}
    for _, kind, message in DAMAGES:
        assert re.search(message.removesuffix("$"), found[kind])
    assert found["size"].startswith("2 invalid file(s) (size): ")


def test_a_threshold_needs_confidences(folder):
    assert missing_confidence(open_external_labels(folder), images(folder), 0.7) is None
    remove_confidences(folder)
    cache = open_external_labels(folder)
    assert missing_confidence(cache, images(folder), 0.0) is None
    fault = missing_confidence(cache, images(folder), 0.7)
    assert fault.message.startswith(f"{folder}/confidence: holds no confidence of an OOD image")
    assert "config.method.ovs_threshold=0.7" in fault.message
    assert fault.message.endswith("or set config.method.ovs_threshold=0")


@pytest.mark.parametrize("confident", [True, False])
def test_training_reads_labels_with_and_without_confidences(folder, confident):
    move_labels(folder)
    if not confident:
        remove_confidences(folder)
    draw = functools.partial(transforms.draw_geometry, crop_size=33, scale_range=(0.5, 2.0), scale_short_side=0)
    source = LabeledSource(images(folder), open_external_labels(folder))
    view = _View(source, INFO, BadRecords(0), HeldRecords(), 33, draw, False)
    (batch,) = grain.MapDataset.range(len(source)).random_map(view, seed=0).batch(len(source))
    assert batch["label"].shape == (5, 33, 33)
    assert set(np.unique(batch["label"])) == {3, 255}
    assert ("confidence" in batch) == confident
