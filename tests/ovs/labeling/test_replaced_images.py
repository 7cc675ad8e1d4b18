"""Labels belong to their images and to one kind of device: what changed is labeled again, and nothing else."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from data_pipelines.labels.manifest import read_manifest
from semiovs_jax.ovs.labeling import doubt, identity
from tests import fake_ovs
from tests.fake_ovs import ColorOVS, label_config, prepare_images, write_images

COUNT = 8
SHIFTED = "002"  # an image that is replaced

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Images as files and in shards, with their labels."""
    root = tmp_path_factory.mktemp("made")
    write_images(root / "ood", COUNT)
    prepare_images(root / "ood", root / "prepared")
    for images in ("ood", "prepared"):
        assert fake_ovs.label(config_of(root, images), ColorOVS()).labeled == COUNT
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "root")
    return tmp_path / "root"


def config_of(root: Path, images: str):
    return label_config(root / images, root / f"labels_{images}")


def replace_image(root: Path, images: str) -> None:
    write_images(root / "others", COUNT + 1)
    shutil.copy(root / "others/train/006.jpg", root / f"ood/{SHIFTED}.jpg")
    if images == "prepared":
        prepare_images(root / "ood", root / "prepared")


def planes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("images", ["ood", "prepared"])
def test_only_a_replaced_image_is_labeled_again(root, images, caplog):
    config = config_of(root, images)
    before = planes(root / "labels_ood")
    digest = read_manifest(root / f"labels_{images}")["images_sha256"]
    assert fake_ovs.complete(config, ColorOVS())
    replace_image(root, images)
    assert not fake_ovs.complete(config, ColorOVS())
    with caplog.at_level(logging.WARNING):
        report = fake_ovs.label(config, ColorOVS())
    assert (report.labeled, report.finished) == (1, True)
    assert f"1 OOD image(s) are not those that were labeled ({SHIFTED})" in caplog.text
    assert fake_ovs.complete(config, ColorOVS())
    assert read_manifest(root / f"labels_{images}")["images_sha256"] != digest
    after = planes(root / "labels_ood")
    changed = {name for name in before if after[name] != before[name]}
    assert changed == ({f"labels/{SHIFTED}.png", f"confidence/{SHIFTED}.png"} if images == "ood" else set())


def test_a_damaged_label_is_made_again(root):
    before = planes(root / "labels_ood")
    path = root / "labels_ood/labels/001.png"
    path.write_bytes(path.read_bytes()[:-20])
    assert not fake_ovs.complete(config_of(root, "ood"), ColorOVS())
    assert fake_ovs.label(config_of(root, "ood"), ColorOVS()).labeled == 1
    assert planes(root / "labels_ood") == before


@pytest.mark.parametrize("images", ["ood", "prepared"])
def test_a_replaced_image_that_cannot_be_read_loses_its_label(root, images):
    (root / f"ood/{SHIFTED}.jpg").write_bytes(b"no image")
    if images == "prepared":
        prepare_images(root / "ood", root / "prepared")
    config = config_of(root, images)
    config.data.max_bad_records = 1
    report = fake_ovs.label(config, ColorOVS())
    assert (report.labeled, report.finished, report.bad) == (0, True, (SHIFTED,))
    assert fake_ovs.complete(config, ColorOVS())


def test_the_set_is_finished_when_all_shares_have_labeled_what_changed(root):
    config = config_of(root, "ood")
    replace_image(root, "ood")
    reports = [fake_ovs.label(config, ColorOVS(), process_index=index, process_count=2) for index in (0, 1)]
    labeled = [report.labeled for report in reports]
    assert sorted(labeled) == [0, 1]
    assert reports[0].finished == (labeled[0] == 1)
    assert reports[1].finished


@pytest.mark.parametrize("images", ["ood", "prepared"])
def test_another_set_of_the_same_names_is_refused(root, images):
    for path in (root / "ood").rglob("*.*"):
        path.write_bytes(path.read_bytes() + b"\n")
    if images == "prepared":
        prepare_images(root / "ood", root / "prepared")
    before = planes(root / "labels_ood")
    for call in (fake_ovs.complete, fake_ovs.label):
        with pytest.raises(InputError, match="holds labels of other images: 8 of 8 labeled images differ"):
            call(config_of(root, images), ColorOVS())
    assert planes(root / "labels_ood") == before


def test_shards_of_an_older_version_are_adopted(root, caplog):
    folder = root / "labels_prepared"
    for path in folder.glob("*-of-*.json"):
        entry = json.loads(path.read_text())
        del entry["provenances"]
        path.write_text(json.dumps(entry))
    manifest = json.loads((folder / "manifest.json").read_text())
    recorded = {key: manifest.pop(key) for key in ("images_sha256", "images_stamp", "device", "matmul_precision")}
    del manifest["mean_confidence"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = config_of(root, "prepared")
    with caplog.at_level(logging.INFO):
        assert fake_ovs.complete(config, ColorOVS())
    assert "8 label(s) of an older version do not record their images" in caplog.text
    found = read_manifest(folder)
    assert {key: found.get(key) for key in recorded} == recorded | {"device": None, "matmul_precision": None}
    replace_image(root, "prepared")
    assert not fake_ovs.complete(config, ColorOVS())
    assert fake_ovs.label(config, ColorOVS()).labeled == 1


class _Device:
    device_kind = "TPU v4"


@pytest.fixture
def elsewhere(monkeypatch):
    """From now on, this process has devices of another kind."""

    class Other:
        devices = staticmethod(lambda: [_Device()])

    monkeypatch.setattr(identity, "jax", Other)


def test_labels_of_one_set_are_made_on_one_kind_of_device(root, elsewhere, caplog):
    config = config_of(root, "ood")
    with caplog.at_level(logging.INFO):
        assert fake_ovs.complete(config, ColorOVS())  # finished labels are data
    assert "the labels are made on cpu, and used here as they are" in caplog.text
    assert fake_ovs.label(config, ColorOVS()).labeled == 0
    (root / "labels_ood/labels/001.png").unlink()
    with pytest.raises(InputError, match=r"made on cpu, but this process labels on TPU v4; .*continue on cpu, or set"):
        fake_ovs.label(config, ColorOVS())
    assert read_manifest(root / "labels_ood")["device"] == "cpu"


def test_labels_of_another_matmul_precision_are_stale(root):
    config = config_of(root, "ood")
    config.ovs.matmul_precision = "default"
    with pytest.raises(InputError, match="stale labels, made otherwise: matmul_precision was highest, is default;"):
        fake_ovs.complete(config, ColorOVS())


def test_labels_of_low_confidence_are_worth_a_warning(root, caplog, monkeypatch):
    mean = read_manifest(root / "labels_ood")["mean_confidence"]
    with caplog.at_level(logging.WARNING):
        fake_ovs.label(config_of(root, "ood"), ColorOVS())
    assert not caplog.records
    monkeypatch.setattr(doubt, "LEAST_CONFIDENCE", 0.99)
    fake_ovs.label(config_of(root, "ood"), ColorOVS())
    assert f"labels_ood: the mean confidence of the labels is {mean:.2f}; below 0.99, the model often" in caplog.text
