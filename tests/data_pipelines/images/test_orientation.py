"""EXIF orientations are applied to images and labels alike, and cost nothing where there are none."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipelines.builders.leakage import perceptual_hash
from data_pipelines.builders.samples import Content
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images import decode
from data_pipelines.images.decode import decode_confidence, decode_image, decode_label, image_size, probe_image
from data_pipelines.images.orientation import turned_size
from data_pipelines.sources.records import File
from tests.data_pipelines.tree import image, jpeg, label, train_data, validation_records, write_label, write_tree

VOC = dataset_info("voc21")
ORIENTATIONS = range(1, 9)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    return exif


def encoded(pixels: np.ndarray, kind: str, orientation: int, **options) -> Content:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, exif=exif_of(orientation), **options)
    return Content("x", stream.getvalue())


def as_viewers_show_it(content: Content, mode: str) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(content.open())).convert(mode))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_decoded_as_viewers_show_them(kind, orientation):
    content = encoded(image(7), kind, orientation)
    expected = as_viewers_show_it(content, "RGB")
    found = decode_image(content)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous
    assert image_size(content) == probe_image(content).size == expected.shape[:2]
    assert probe_image(content).orientation == (1 if kind == "TIFF" else orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_smaller_decode_is_turned_too(orientation):
    pixels = np.broadcast_to(np.linspace(0, 255, 120)[:, None, None], (120, 200, 3)).astype(np.uint8)
    content = encoded(pixels, "JPEG", orientation)
    upright = as_viewers_show_it(content, "RGB")
    small = decode_image(content, turned_size((60, 100), orientation))
    assert small.shape == (upright.shape[0] // 2, upright.shape[1] // 2, 3)
    np.testing.assert_allclose(small, upright[::2, ::2], atol=4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_and_confidences_are_turned_as_their_own_files_note(orientation):
    content = encoded(label(7), "PNG", orientation)
    expected = as_viewers_show_it(content, "L")
    np.testing.assert_array_equal(decode_label(content, VOC), expected)
    np.testing.assert_array_equal(decode_confidence(content), expected)
    assert decode.probe_label(content).size == expected.shape


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_invalid_orientations_are_none(orientation):
    content = encoded(image(7), "JPEG", orientation)
    np.testing.assert_array_equal(decode_image(content), np.asarray(Image.open(content.open())))
    assert image_size(content) == image(7).shape[:2]


def test_damaged_exif_does_not_matter_to_the_pixels():
    data = jpeg(image(7), exif=exif_of(6))
    damaged = Content("x", data.replace(b"Exif\0\0MM", b"Exif\0\0\xff\xff").replace(b"Exif\0\0II", b"Exif\0\0\xff\xff"))
    np.testing.assert_array_equal(decode_image(damaged), np.asarray(Image.open(io.BytesIO(data))))


def test_exif_is_found_behind_other_segments_and_fill_bytes():
    data = jpeg(image(7), exif=exif_of(8), icc_profile=b"x" * 200_000, comment=b"a comment")
    assert decode_image(Content("x", data)).shape[:2] == image(7).shape[1::-1]
    start = data.index(b"\xff\xe1")
    assert decode_image(Content("x", data[:start] + b"\xff\xff" + data[start:])).shape[:2] == image(7).shape[1::-1]


def test_jpegs_without_exif_are_not_opened_twice(monkeypatch):
    def refuse(*arguments):
        raise AssertionError

    monkeypatch.setattr(Image, "open", refuse)
    assert decode_image(Content("x", jpeg(image(7)))).shape == image(7).shape


@pytest.mark.parametrize("scaled_decode", [False, True])
def test_a_label_of_the_upright_picture_belongs_to_a_turned_image(tmp_path, scaled_decode):
    config = write_tree(tmp_path, labeled=1, val=1)
    config.scaled_decode = scaled_decode
    for split, id_ in (("labeled", "0000"), ("val", "0008")):
        (tmp_path / f"{split}.txt").write_text(f"JPEGImages/{id_}.jpg SegmentationClass/{id_}.png\n")
        (tmp_path / "JPEGImages" / f"{id_}.jpg").write_bytes(jpeg(image(0), exif=exif_of(6)))
        write_label(tmp_path / "SegmentationClass" / f"{id_}.png", np.rot90(label(0), -1))
    assert next(train_data(config, ("labeled",), batch_size=1).iterator)["labeled"]["label"].shape == (1, 33, 33)
    records = validation_records(config)
    assert list(records.sizes) == [records[0]["label"].shape] == [label(0).shape[::-1]]
    write_label(tmp_path / "SegmentationClass/0008.png", label(0))
    with pytest.raises(
        InputError, match=r"when its EXIF orientation is applied; write the label for the upright image"
    ):
        records[0]


def test_a_turned_copy_of_an_evaluation_image_is_found():
    blocks = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(blocks).resize((240, 180), Image.Resampling.BICUBIC))
    stored = Content("x", jpeg(np.ascontiguousarray(np.rot90(smooth)), exif=exif_of(6)))
    distance = np.bitwise_count(perceptual_hash(stored) ^ perceptual_hash(Content("y", jpeg(smooth))))
    assert distance <= 10


def test_a_file_on_disk_is_read_as_its_bytes(tmp_path):
    (tmp_path / "x.jpg").write_bytes(jpeg(image(7), exif=exif_of(5)))
    assert image_size(File(tmp_path / "x.jpg")) == decode_image(File(tmp_path / "x.jpg")).shape[:2]
