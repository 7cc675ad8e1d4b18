"""The table of bad data: each is one clear fault before training, or is counted."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.checking.report import DataReport, report_data
from data_pipelines.checking.survey import labels_dir_fault, open_splits
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import Faults, InputError
from tests.data_pipelines import tree


@pytest.fixture
def config(tmp_path):
    return ConfigDict(
        {
            "data": tree.write_tree(tmp_path),
            "method": {"name": "unimatch", "ood": "ovs"},
            "ovs": {"labels_dir": str(tmp_path / "cache")},
        }
    )


def look(config, splits=("labeled", "unlabeled", "val", "ood")) -> tuple[DataReport, list[str]]:
    """The report on the splits, and everything that is wrong with them."""
    faults = Faults()
    sources = open_splits(config.data, splits, faults)
    report = report_data(sources, dataset_info(config.data.dataset), config.data, thorough=False)
    faults.add(report.faults)
    faults.add(filter(None, [labels_dir_fault(config.data, config.ovs.labels_dir)]))
    return report, faults.found


def missing_root(root, config):
    config.data.root = str(root / "nowhere")


def empty_split(root, config):
    (root / "labeled.txt").write_text("\n")


def malformed_split(root, config):
    (root / "val.txt").write_text("JPEGImages/0010.jpg\n")


def ids_without_files(root, config):
    for id_ in ("0004", "0005", "0006"):
        (root / f"JPEGImages/{id_}.jpg").unlink()


def validation_id_without_file(root, config):
    config.data.max_bad_records = 9
    (root / "SegmentationClass/0011.png").unlink()


def foreground_mask(root, config):
    Image.fromarray(np.where(tree.label(1) > 0, 255, 0).astype(np.uint8)).save(root / "SegmentationClass/0001.png")


def rgb_mask(root, config):
    Image.open(root / "SegmentationClass/0002.png").convert("RGB").save(root / "SegmentationClass/0002.png")


def label_out_of_range(root, config):
    plane = tree.label(10)
    plane[0, 0] = 21
    tree.write_label(root / "SegmentationClass/0010.png", plane)


def label_of_another_size(root, config):
    tree.write_label(root / "SegmentationClass/0000.png", np.zeros((9, 8), np.uint8))


def truncated_jpeg(root, config):
    path = root / "ood/train/001.jpg"
    path.write_bytes(path.read_bytes()[:-100])


def empty_jpeg(root, config):
    (root / "JPEGImages/0007.jpg").write_bytes(b"")


def unknown_dataset(root, config):
    config.data.dataset = "voc22"


def labels_among_images(root, config):
    config.ovs.labels_dir = str(root / "ood" / "labels")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_root, r"config\.data\.root=.*nowhere: no such folder; "),
        (empty_split, r"labeled\.txt: the split is empty"),
        (malformed_split, r"val\.txt: 1 fault\(s\): line 1: 'JPEGImages/0010\.jpg' has 1 column\(s\)"),
        (
            ids_without_files,
            r"unlabeled: 3 file\(s\) cannot be read: .*0004\.jpg: cannot be read \(No such file.*0005\.jpg.*0006.*"
            r"config\.data\.max_bad_records=0",
        ),
        (validation_id_without_file, r"val: 1 file\(s\) cannot be read: .*0011\.png: cannot be read \(No such file"),
        (foreground_mask, r"labeled: .*0001\.png: label image holds only the values 0 and 255"),
        (rgb_mask, r"labeled: .*0002\.png: label image has mode RGB, expected class indices"),
        (label_out_of_range, r"val: .*0010\.png: label 21 is out of range \(1 pixels"),
        (label_of_another_size, r"labeled: .*0000\.png: label is 8x9 .* but .*0000\.jpg is 40x30"),
        (truncated_jpeg, r"ood: 1 file\(s\) .*001\.jpg: is damaged or not an image"),
        (empty_jpeg, r"unlabeled: 1 file\(s\) .*0007\.jpg: is damaged or not an image"),
        (labels_among_images, r"config\.ovs\.labels_dir=.* is below config\.data\.ood_root="),
    ],
)
def test_bad_input_is_one_fault_that_names_it(tmp_path, config, spoil, message):
    spoil(tmp_path, config)
    (fault,) = look(config)[1]
    assert re.search(message, fault)


def test_an_unknown_dataset_is_refused(tmp_path, config):
    unknown_dataset(tmp_path, config)
    with pytest.raises(InputError, match=r"voc22"):
        look(config)


def test_all_faults_of_all_splits_are_told_at_once_the_first_few_by_name(tmp_path, config):
    rgb_mask(tmp_path, config)
    label_out_of_range(tmp_path, config)
    for i in range(7):
        (tmp_path / f"JPEGImages/{3 + i:04d}.jpg").unlink()
    labeled, unlabeled, val = look(config)[1]
    assert labeled.startswith("labeled: ")
    assert val.startswith("val: ")
    for part in ("unlabeled: 7 file(s)", "0003.jpg", "0007.jpg", "; and 2 more"):
        assert part in unlabeled
    assert "0008.jpg" not in unlabeled


def test_all_splits_that_cannot_be_opened_are_told_at_once(tmp_path, config):
    for spoil in (empty_split, malformed_split, labels_among_images):
        spoil(tmp_path, config)
    labeled, val, labels = look(config)[1]
    assert "labeled.txt: " in labeled
    assert "val.txt: " in val
    assert "is below config.data.ood_root" in labels


@pytest.mark.parametrize("spoil", [ids_without_files, truncated_jpeg, empty_jpeg])
def test_unreadable_training_images_are_counted_where_allowed(tmp_path, config, spoil):
    spoil(tmp_path, config)
    config.data.max_bad_records = 3
    report, faults = look(config)
    assert not faults
    count = 3 if spoil is ids_without_files else 1
    assert report.warnings[0].startswith(f"{count} training file(s) cannot be read and will be passed over")


def test_good_inputs_are_counted_by_split(config):
    report, faults = look(config)
    assert not faults
    assert {name: found.records for name, found in report.splits.items()} == {
        "labeled": 3,
        "val": 2,
        "unlabeled": 7,
        "ood": 5,
    }
    assert report.val_sizes == ((30, 43), (31, 44))
    assert len(report.ood_ids) == 5


def test_only_the_splits_that_are_asked_for_are_checked(tmp_path, config):
    ids_without_files(tmp_path, config)
    config.data.ood_root = "nowhere"
    report, faults = look(config, ("labeled", "val"))
    assert not faults
    assert report.splits.keys() == {"labeled", "val"}


def test_training_images_in_the_validation_split_are_told(tmp_path, config):
    (tmp_path / "val.txt").write_text((tmp_path / "labeled.txt").read_text())
    warnings = "\n".join(look(config)[0].warnings)
    assert "3 image(s) of the labeled split are in the val split too (JPEGImages/0000" in warnings


def test_splits_that_are_not_the_published_ones_are_told(config):
    warnings = [warning.split(";")[0] for warning in look(config)[0].warnings]
    assert "val: 2 images, 1449 in the published voc21 split" in warnings
    assert "train: 10 images, 10582 in the published voc21 split" in warnings
