"""The table of bad inputs, as far as it concerns data: each is one clear error before training, or is counted."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.checking.inputs import check_inputs, check_workdir
from data_pipelines.errors import InputError
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
        (missing_root, r"config\.data\.root=.*nowhere: no such folder; create it, or set config\.data\.root"),
        (empty_split, r"labeled\.txt: the split is empty"),
        (malformed_split, r"val\.txt: 1 fault\(s\): line 1: 'JPEGImages/0010\.jpg' has 1 column\(s\)"),
        (
            ids_without_files,
            r"unlabeled: 3 of 7 records cannot be used: .*0004\.jpg: cannot be read \(No such file.*0005\.jpg.*0006"
            r"(.|\n)*3 training file\(s\) cannot be read and config\.data\.max_bad_records=0",
        ),
        (validation_id_without_file, r"val: 1 of 2 records cannot be used: .*0011\.png: cannot be read \(No such file"),
        (foreground_mask, r"labeled: 1 of 3 records .*0001\.png: label image holds only the values 0 and 255"),
        (rgb_mask, r"labeled: 1 of 3 records .*0002\.png: label image has mode RGB, expected class indices"),
        (label_out_of_range, r"val: 1 of 2 records .*0010\.png: label 21 is out of range \(1 pixels"),
        (label_of_another_size, r"labeled: .*0000\.png: label is 8x9 .* but .*0000\.jpg is 40x30"),
        (truncated_jpeg, r"ood: 1 of 5 records .*001\.jpg: is damaged or not an image"),
        (empty_jpeg, r"unlabeled: 1 of 7 records .*0007\.jpg: is damaged or not an image"),
        (unknown_dataset, r"dataset 'voc22' is unknown: name one of"),
        (labels_among_images, r"config\.ovs\.labels_dir=.* lies below config\.data\.ood_root="),
    ],
)
def test_bad_input_is_one_error_that_names_it(tmp_path, config, spoil, message):
    spoil(tmp_path, config)
    with pytest.raises(InputError, match=message):
        check_inputs(config)


def test_all_faults_of_all_splits_are_told_at_once_the_first_few_by_name(tmp_path, config):
    rgb_mask(tmp_path, config)
    label_out_of_range(tmp_path, config)
    for i in range(7):
        (tmp_path / f"JPEGImages/{3 + i:04d}.jpg").unlink()
    with pytest.raises(InputError) as error:
        check_inputs(config)
    message = str(error.value)
    for part in ("labeled: 1 of 3", "val: 1 of 2", "unlabeled: 7 of 7", "0003.jpg", "0007.jpg", "; and 2 more"):
        assert part in message
    assert "0008.jpg" not in message


def test_all_splits_that_cannot_be_opened_are_told_at_once(tmp_path, config):
    for spoil in (empty_split, malformed_split, labels_among_images):
        spoil(tmp_path, config)
    with pytest.raises(InputError) as error:
        check_inputs(config)
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in str(error.value).splitlines()[:2]] == [
        "labeled.txt",
        "val.txt",
    ]
    assert "lies below config.data.ood_root" in str(error.value)


@pytest.mark.parametrize("spoil", [ids_without_files, truncated_jpeg, empty_jpeg])
def test_unreadable_training_images_are_counted_where_allowed(tmp_path, config, spoil, caplog):
    spoil(tmp_path, config)
    config.data.max_bad_records = 3
    summary = check_inputs(config)
    assert len(summary.unreadable) == (3 if spoil is ids_without_files else 1)
    assert all(message in caplog.text for message in summary.unreadable)


def test_good_inputs_are_counted_by_split(config):
    summary = check_inputs(config)
    assert summary.counts == {"labeled": 3, "val": 2, "unlabeled": 7, "ood": 5}
    assert summary.unreadable == ()


def test_only_what_the_method_reads_is_checked(tmp_path, config):
    config.method = {"name": "supervised", "ood": "none"}
    ids_without_files(tmp_path, config)
    config.data.ood_root = "nowhere"
    assert check_inputs(config).counts == {"labeled": 3, "val": 2}


def test_training_images_in_the_validation_split_are_told(tmp_path, config):
    (tmp_path / "val.txt").write_text((tmp_path / "labeled.txt").read_text())
    warnings = "\n".join(check_inputs(config).warnings)
    assert "3 image(s) of the labeled split are in the val split too (JPEGImages/0000" in warnings


def test_splits_that_are_not_the_published_ones_are_told(config):
    warnings = check_inputs(config).warnings
    assert [w.split(";")[0] for w in warnings] == [
        "val: 2 images, 1449 in the published voc21 split",
        "train: 10 images, 10582 in the published voc21 split",
    ]


def test_a_work_directory_is_made(tmp_path):
    folder = check_workdir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_a_work_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir=.*file/run: cannot be written \(.*\); choose a folder"):
        check_workdir(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"--workdir=.*file: cannot be written"):
        check_workdir(tmp_path / "file")
