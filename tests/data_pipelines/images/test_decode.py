import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.decode import (
    decode_confidence,
    decode_image,
    decode_label,
    image_size,
    label_fault,
    probe_image,
    probe_label,
)
from data_pipelines.images.transforms import resize_image
from data_pipelines.sources.records import File, UnreadableError
from tests.data_pipelines.tree import image, jpeg, jpeg_of_size, label, write_label

VOC = dataset_info("voc21")


def file(tmp_path, data: bytes, name="x.jpg") -> File:
    path = tmp_path / name
    path.write_bytes(data)
    return File(path)


def saved(tmp_path, picture: Image.Image, name: str) -> File:
    picture.save(tmp_path / name)
    return File(tmp_path / name)


def test_jpegs_decode_to_the_pixels_of_pil(tmp_path):
    data = jpeg(image(7))
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(file(tmp_path, data)), expected)


@pytest.mark.parametrize(("mode", "levels"), [("L", 0), ("RGB", 0), ("CMYK", 1)])
def test_jpegs_of_every_mode_become_rgb(tmp_path, mode, levels):
    source = saved(tmp_path, Image.fromarray(image(7)).convert(mode), "x.jpg")
    expected = np.asarray(Image.open(source.path).convert("RGB"))
    np.testing.assert_allclose(decode_image(source).astype(int), expected, rtol=0, atol=levels)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1"])
def test_pngs_of_every_mode_become_rgb(tmp_path, mode):
    source = saved(tmp_path, Image.fromarray(image(7)).convert(mode), "x.png")
    assert decode_image(source).shape == image(7).shape


def test_a_jpeg_with_stray_bytes_decodes_as_pil_decodes_it(tmp_path):
    data = jpeg(image(7)) + b"stray" * 100
    np.testing.assert_array_equal(decode_image(file(tmp_path, data)), np.asarray(Image.open(io.BytesIO(data))))
    probe_image(file(tmp_path, data))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.6, 0.99])
def test_truncated_images_are_unreadable_and_named(tmp_path, keep):
    data = jpeg(image(7))
    source = file(tmp_path, data[: keep if isinstance(keep, int) else int(keep * len(data))])
    for read in (decode_image, probe_image):
        with pytest.raises(UnreadableError, match=r"x\.jpg: is damaged or not an image"):
            read(source)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [((375, 500), (375, 500)), ((189, 250), (375, 500)), ((188, 250), (188, 250)), ((10, 60), (47, 63))],
)
def test_a_jpeg_is_decoded_no_smaller_than_asked_and_no_larger_than_need_be(tmp_path, at_least, size):
    rows = np.linspace(0, 255, 375)[:, None, None]
    smooth = np.broadcast_to(rows, (375, 500, 3)).astype(np.uint8)
    found = decode_image(file(tmp_path, jpeg(smooth)), at_least)
    assert found.shape == (*size, 3)
    np.testing.assert_allclose(found, resize_image(smooth, size), atol=3)


def test_other_formats_keep_their_size(tmp_path):
    source = saved(tmp_path, Image.fromarray(image(7)), "x.png")
    np.testing.assert_array_equal(decode_image(source, (2, 2)), image(7))


def test_sizes_come_from_headers(tmp_path):
    data = jpeg(np.zeros((30, 50, 3), np.uint8))
    assert image_size(file(tmp_path, data[:-20])) == (30, 50)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_palette_and_gray_labels_are_read_as_indices(tmp_path, mode):
    if mode == "P":
        write_label(tmp_path / "x.png", label(7))
    else:
        Image.fromarray(label(7)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode_label(File(tmp_path / "x.png"), VOC), label(7))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_labels_without_indices_are_refused_by_mode(tmp_path, mode):
    pixels = Image.fromarray(label(7).astype(np.uint16)) if mode == "I;16" else Image.fromarray(label(7)).convert(mode)
    with pytest.raises(InputError, match=rf"x\.png: label image has mode {mode}, expected class indices"):
        decode_label(saved(tmp_path, pixels, "x.png"), VOC)


def test_a_foreground_mask_is_refused(tmp_path):
    mask = np.where(label(7) > 0, 255, 0).astype(np.uint8)
    with pytest.raises(InputError, match=r"x\.png: label image holds only the values 0 and 255.*indices 0\.\.20"):
        decode_label(saved(tmp_path, Image.fromarray(mask), "x.png"), VOC)


def test_background_and_ignored_pixels_in_the_datasets_palette_are_a_label(tmp_path):
    plane = np.where(label(7) > 0, 255, 0).astype(np.uint8)
    write_label(tmp_path / "x.png", plane)
    np.testing.assert_array_equal(decode_label(File(tmp_path / "x.png"), VOC), plane)


@pytest.mark.parametrize("value", [21, 150, 254])
def test_labels_out_of_range_are_refused_by_value(tmp_path, value):
    plane = label(7)
    plane[0, :3] = value
    write_label(tmp_path / "x.png", plane)
    with pytest.raises(
        InputError, match=rf"x\.png: label {value} is out of range \(3 pixels.*classes 0\.\.20"
    ) as error:
        decode_label(File(tmp_path / "x.png"), VOC)
    assert not isinstance(error.value, UnreadableError)


@pytest.mark.parametrize("ignore_index", [21, 22, 100, 254, 255])
def test_exactly_the_classes_and_the_ignore_index_are_in_range(tmp_path, ignore_index):
    info = dataclasses.replace(VOC, ignore_index=ignore_index)
    for value in range(256):
        write_label(tmp_path / "x.png", np.array([[0, value, ignore_index]], np.uint8))
        if value < 21 or value == ignore_index:
            assert decode_label(File(tmp_path / "x.png"), info)[0, 1] == value
        else:
            with pytest.raises(InputError, match=f"label {value} is out of range"):
                decode_label(File(tmp_path / "x.png"), info)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_labels_are_refused(tmp_path, mode):
    source = saved(tmp_path, Image.fromarray(label(7)).convert(mode), "x.jpg")
    with pytest.raises(InputError, match=r"x\.jpg: label image is a JPEG, whose compression .*; export .* as PNG"):
        decode_label(source, VOC)


def test_a_jpeg_with_more_pixels_than_are_read_is_refused_by_its_size(tmp_path):
    source = file(tmp_path, jpeg_of_size(60_000, 59_999))
    for read in (decode_image, probe_image):
        with pytest.raises(UnreadableError, match=r"x\.jpg: is 59999x60000 .* more than the 178,956,970 pixels"):
            read(source)
    with pytest.raises(UnreadableError, match="3599940000 pixels"):
        image_size(source)


def test_a_truncated_label_is_unreadable(tmp_path):
    write_label(tmp_path / "x.png", label(7))
    data = (tmp_path / "x.png").read_bytes()
    with pytest.raises(UnreadableError, match=r"y\.png"):
        decode_label(file(tmp_path, data[: len(data) // 2], "y.png"), VOC)


def test_confidence_must_be_gray(tmp_path):
    plane = np.arange(200, dtype=np.uint8).reshape(10, 20)
    np.testing.assert_array_equal(decode_confidence(saved(tmp_path, Image.fromarray(plane), "c.png")), plane)
    write_label(tmp_path / "p.png", plane)
    with pytest.raises(InputError, match=r"p\.png: confidence image has mode P"):
        decode_confidence(File(tmp_path / "p.png"))


def test_a_probe_tells_what_a_photograph_is_without_decoding_it(tmp_path):
    data = jpeg(np.zeros((30, 50, 3), np.uint8))
    source = file(tmp_path, data)
    assert probe_image(source) == (source.name, "JPEG", "RGB", (30, 50), len(data), 1)


def test_a_probe_tells_what_a_label_holds_right_or_wrong(tmp_path):
    plane = np.full((10, 20), 99, np.uint8)
    plane[0, :3] = 1
    write_label(tmp_path / "x.png", plane)
    facts = probe_label(File(tmp_path / "x.png"))
    assert facts == (str(tmp_path / "x.png"), "PNG", "P", (10, 20), {1: 3, 99: 197}, 1)
    fault = label_fault(facts, VOC)
    assert fault is not None
    assert fault[:2] == ("range", facts.name)
    assert label_fault(facts._replace(values={1: 3, 20: 1, 255: 196}), VOC) is None
    colors = probe_label(saved(tmp_path, Image.fromarray(image(7)), "y.png"))
    assert (colors.mode, colors.values) == ("RGB", {})
