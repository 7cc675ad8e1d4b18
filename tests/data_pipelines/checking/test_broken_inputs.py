"""Odd and broken files on their way into training batches, labels and shards; archives are in builders/."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images.decode import decode_image, image_size, probe_image
from data_pipelines.loading.selection import repeat_factors
from data_pipelines.prepare.local import make_builder, prepare
from data_pipelines.sources.records import File
from data_pipelines.splits.balanced import draw_balanced
from tests import fake_ovs
from tests.data_pipelines.tree import data_config, train_data
from tests.fake_ovs import ColorOVS, label_config

GRAY = np.linspace(0, 255, 40 * 60).reshape(40, 60).astype(np.uint8)
PHOTO = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], -1)
ROTATED = 6  # EXIF's orientation: turn clockwise to see it upright


def _alpha(path: Path) -> np.ndarray:
    Image.fromarray(np.dstack([PHOTO, GRAY])).save(path.with_suffix(".png"))
    return PHOTO


def _sixteen_bits(path: Path) -> np.ndarray:
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(path.with_suffix(".png"))
    return np.dstack([GRAY] * 3)


def _cmyk(path: Path) -> np.ndarray:
    Image.fromarray(PHOTO).convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
    return PHOTO


def _rotated(path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    Image.fromarray(PHOTO).save(path.with_suffix(".jpg"), exif=exif, quality=95)
    return np.rot90(PHOTO, -1)


def _one_pixel(path: Path) -> np.ndarray:
    pixel = np.full((1, 1, 3), 200, np.uint8)
    Image.fromarray(pixel).save(path.with_suffix(".png"))
    return pixel


ODD = [_alpha, _sixteen_bits, _cmyk, _rotated, _one_pixel]


@pytest.mark.parametrize("write", ODD)
def test_odd_photographs_become_upright_rgb(write, tmp_path: Path):
    """Alpha is dropped, 16 bits become 8, EXIF's orientation is applied."""
    (tmp_path / "ood").mkdir()
    expected = write(tmp_path / "ood" / "photo")
    (path,) = (tmp_path / "ood").iterdir()
    found = decode_image(File(path))
    assert found.shape == expected.shape
    assert image_size(File(path)) == probe_image(File(path)).size == expected.shape[:2]
    assert np.abs(found.astype(int) - expected).mean() < 4
    config = data_config(tmp_path, crop_size=65, scale_range=(1.0, 1.0))
    data = train_data(config, ("ood",), batch_size=1)
    view = next(data.iterator)["ood"]
    assert view["valid"].sum() == found.shape[0] * found.shape[1]
    shown = view["image"][view["valid"]].reshape(found.shape)
    assert any(np.array_equal(shown, image) for image in (found, found[:, ::-1]))


def test_odd_photographs_get_labels_of_their_size_from_folders_and_shards(tmp_path: Path):
    (tmp_path / "ood").mkdir()
    for write in ODD:
        write(tmp_path / "ood" / write.__name__.strip("_"))
    builder = make_builder("image_folder", tmp_path / "shards", str(tmp_path / "ood"))
    assert prepare(builder, None).report.bad == []
    for root, name in ((tmp_path / "ood", "files"), (tmp_path / "shards" / "image_folder", "shards")):
        config = label_config(root, tmp_path / name)
        report = fake_ovs.label(config, ColorOVS())
        assert (report.images, report.labeled, report.bad) == (5, 5, ())
        data = train_data(
            data_config(tmp_path, ood_root=str(root)), ("ood",), batch_size=5, ood_labels_dir=str(tmp_path / name)
        )
        assert next(data.iterator)["ood"]["label"].shape == (5, 33, 33)


def test_a_class_that_no_image_shows_changes_nothing():
    present = np.zeros((20, 3), bool)
    present[:10, 0] = present[10:, 2] = True
    drawn = draw_balanced(present, 4, seed=0)
    assert present[drawn].sum(axis=0).tolist() == [2, 0, 2]
    np.testing.assert_array_equal(repeat_factors(present * 5, threshold=0.3), 1.0)
