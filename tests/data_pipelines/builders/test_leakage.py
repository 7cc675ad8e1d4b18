"""Copies of evaluation images are found, other images are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.builders.leakage import Duplicate, EvaluationImages, hash_evaluation_images, perceptual_hash
from data_pipelines.builders.samples import Content
from data_pipelines.errors import InputError
from data_pipelines.loading.streams import open_split
from data_pipelines.shapes.benchmark import ShapesSpec, write_shapes
from data_pipelines.sources.records import Source, UnreadableError
from tests.data_pipelines.sources.test_shards import encoded, prepare


def encode(image: Image.Image, kind: str = "JPEG", **options) -> Content:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Content("copy", stream.getvalue())


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cut(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def colored(image: Image.Image, gains: tuple[float, float, float], offset: float = 0) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image, float) * gains + offset, 0, 255).astype(np.uint8))


COPIES = {
    "png": lambda image: encode(image, "PNG"),
    "webp": lambda image: encode(image, "WEBP", quality=75),
    "quality 30": lambda image: encode(image, quality=30),
    "quality 90": lambda image: encode(image, quality=90),
    "half": lambda image: encode(scaled(image, 0.5), quality=75),
    "double": lambda image: encode(scaled(image, 2)),
    "cut": lambda image: encode(cut(image, 0.02)),
    "cast": lambda image: encode(colored(image, (1.12, 1, 0.88))),
    "brighter": lambda image: encode(colored(image, (1, 1, 1), 25)),
    "gray": lambda image: encode(image.convert("L")),
    "CMYK": lambda image: encode(image.convert("CMYK")),
}


def open_evaluation(root: Path, split: str = "splits/val.txt") -> Source:
    return open_split(str(root), split, ("--evaluation_root", "--evaluation_split"), with_labels=False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("leakage") / "shapes"
    write_shapes(root, ShapesSpec(labeled=1, unlabeled=1, val=24, ood=40))
    return root


@pytest.fixture(scope="module")
def evaluation(shapes) -> EvaluationImages:
    return hash_evaluation_images(open_evaluation(shapes))


def files(shapes: Path, pattern: str) -> list[Path]:
    return sorted(shapes.glob(pattern))


def test_the_same_bytes_are_an_exact_duplicate(shapes, evaluation):
    for path in files(shapes, "JPEGImages/val_*.jpg"):
        found = evaluation.duplicate(Content("x", path.read_bytes()))
        assert found == Duplicate(f"JPEGImages/{path.stem}", "exact", 0)


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near_duplicates(copy, shapes, evaluation):
    for path in files(shapes, "JPEGImages/val_*.jpg"):
        found = evaluation.duplicate(COPIES[copy](Image.open(path).convert("RGB")))
        assert found is not None
        assert (found.evaluation, found.kind) == (f"JPEGImages/{path.stem}", "near")
        assert found.distance <= evaluation.distance


def test_other_images_are_no_duplicates(shapes, evaluation):
    others = [*files(shapes, "ood/JPEGImages/*.jpg"), *files(shapes, "JPEGImages/train_*.jpg")]
    assert [evaluation.duplicate(Content("x", path.read_bytes())) for path in others] == [None] * 42


def test_the_distance_counts_differing_bits():
    images = EvaluationImages(("a", "b"), (b"1", b"2"), np.array([0, 2**64 - 1], np.uint64), distance=64)
    image = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)), "PNG")
    ones = bin(int(perceptual_hash(image))).count("1")
    assert images.duplicate(image) == Duplicate("a" if ones <= 32 else "b", "near", min(ones, 64 - ones))


def test_any_mode_and_size_has_a_hash():
    noise = np.random.default_rng(0).integers(0, 255, (9, 7), np.uint8)
    for image in (
        Image.fromarray(noise).convert("RGBA"),
        Image.fromarray(noise).convert("P"),
        Image.fromarray(noise.astype(np.uint16) * 256),
        Image.new("RGB", (1, 1)),
    ):
        assert 0 <= perceptual_hash(encode(image, "PNG")) < 2**64
    with pytest.raises(UnreadableError, match=r"cut\.jpg: is damaged"):
        perceptual_hash(Content("cut.jpg", encode(Image.fromarray(noise)).data[:200]))


def test_a_prepared_dataset_and_a_list_give_the_same_hashes(shapes, evaluation, tmp_path):
    contents = {id_: content for id_, content in encoded(shapes).items() if id_.startswith("JPEGImages/val_")}
    folder = prepare(tmp_path, {"val": contents})
    found = hash_evaluation_images(open_evaluation(folder.parent, "val"))
    assert (found.ids, found.fingerprint) == (evaluation.ids, evaluation.fingerprint)
    assert (found.hashes == evaluation.hashes).all()


def test_evaluation_images_must_be_readable(shapes, tmp_path):
    with pytest.raises(InputError, match=r"--leakage_distance=65: a hash has 64 bits"):
        hash_evaluation_images(open_evaluation(shapes), 65)
    (tmp_path / "val.txt").write_text("a.jpg a.png\n")
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.jpg: is damaged or not an image"):
        hash_evaluation_images(open_evaluation(tmp_path, "val.txt"))
