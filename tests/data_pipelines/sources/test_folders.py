import os

import pytest

from data_pipelines.errors import InputError
from data_pipelines.sources.records import UnreadableError
from tests.data_pipelines.tree import open_stream, write_cached_labels, write_tree


def test_a_split_gives_records_in_order_that_read_their_bytes_when_asked(tmp_path):
    config = write_tree(tmp_path)
    source = open_stream(config, "labeled")
    assert source.ids() == ["JPEGImages/0000", "JPEGImages/0001", "JPEGImages/0002"]
    assert source[1].image.read() == (tmp_path / "JPEGImages/0001.jpg").read_bytes()
    assert source[1].label.read() == (tmp_path / "SegmentationClass/0001.png").read_bytes()
    assert source[1].confidence is None
    (tmp_path / "JPEGImages/0002.jpg").unlink()
    with pytest.raises(UnreadableError, match=r"0002\.jpg: cannot be read \(No such file"):
        source[2].image.read()


def test_unlabeled_records_have_no_label_even_where_the_split_names_one(tmp_path):
    config = write_tree(tmp_path)
    assert open_stream(config, "unlabeled")[0].label is None
    assert open_stream(config, "mix").ids() == open_stream(config, "unlabeled").ids()


def test_split_lists_may_have_one_column_an_absolute_path_and_foreign_line_ends(tmp_path):
    config = write_tree(tmp_path)
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "u.txt"
    path.write_bytes("\ufeffJPEGImages/0004.jpg\r\n\r\nJPEGImages/0003.jpg\r\n".encode())
    config.unlabeled_split = str(path)
    assert open_stream(config, "unlabeled").ids() == ["JPEGImages/0004", "JPEGImages/0003"]


def test_a_folder_gives_every_image_below_it_sorted(tmp_path):
    config = write_tree(tmp_path)
    (tmp_path / "ood" / ".thumbs").mkdir()
    (tmp_path / "ood" / ".thumbs" / "x.jpg").touch()
    (tmp_path / "ood" / "notes.txt").touch()
    assert open_stream(config, "ood").ids() == ["000", "002", "004", "train/001", "train/003"]


def test_a_link_to_a_folder_above_is_not_followed_and_other_links_are(tmp_path):
    config = write_tree(tmp_path)
    expected = open_stream(config, "ood").ids()
    (tmp_path / "ood/train/up").symlink_to(tmp_path / "ood")
    (tmp_path / "ood/self").symlink_to(".")
    assert open_stream(config, "ood").ids() == expected
    (tmp_path / "ood/photos").symlink_to(tmp_path / "JPEGImages")
    found = open_stream(config, "ood").ids()
    assert [id_ for id_ in found if not id_.startswith("photos/")] == expected
    assert len(found) == len(expected) + len(list((tmp_path / "JPEGImages").iterdir()))


def test_folders_that_link_to_each_other_end(tmp_path):
    config = write_tree(tmp_path)
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / "ood" / one).mkdir()
        (tmp_path / "ood" / one / f"{one}.jpg").write_bytes((tmp_path / "ood/000.jpg").read_bytes())
        (tmp_path / "ood" / one / "other").symlink_to(tmp_path / "ood" / other)
    found = open_stream(config, "ood").ids()
    assert [id_ for id_ in found if id_[0] in "ab"] == ["a/a", "a/other/b", "b/b", "b/other/a"]


def test_names_that_are_not_utf8_are_refused_escaped(tmp_path):
    config = write_tree(tmp_path)
    (tmp_path / "ood" / os.fsdecode(b"notes\xe9.txt")).touch()
    open_stream(config, "ood")
    (tmp_path / "ood" / os.fsdecode(b"caf\xe9.jpg")).touch()
    with pytest.raises(InputError, match=r"ood: the name 'caf\\udce9.jpg' is not UTF-8; rename the file") as error:
        open_stream(config, "ood")
    assert str(error.value).encode()
    config.ood_root = str(tmp_path / os.fsdecode(b"r\xe9"))
    with pytest.raises(InputError, match=r"ood_root='.*r\\udce9': the name is not UTF-8; rename the folder"):
        open_stream(config, "ood")


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path):
    config = write_tree(tmp_path)
    for name in ("a.gif", "train/b.GIF", "c.tif", "readme", ".hidden.gif"):
        (tmp_path / "ood" / name).touch()
    assert open_stream(config, "ood").left_out == (("", 1), (".gif", 2), (".tif", 1))


def test_an_ood_split_restricts_the_folder(tmp_path):
    config = write_tree(tmp_path)
    (tmp_path / "few.txt").write_text("train/003.jpg\n")
    config.ood_split = str(tmp_path / "few.txt")
    assert open_stream(config, "ood").ids() == ["train/003"]


def test_cached_labels_join_by_id(tmp_path):
    config = write_tree(tmp_path)
    cache = tmp_path / "cache"
    write_cached_labels(tmp_path, cache, ["train/003"])
    record = open_stream(config, "ood", str(cache))[4]
    assert record.id == "train/003"
    assert record.label.read() == (cache / "labels/train/003.png").read_bytes()
    assert record.confidence.read() == (cache / "confidence/train/003.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labeled\.txt: the split is empty"),
        ("\n \n", r"the split is empty"),
        (
            "JPEGImages/0000.jpg\n",
            r"1 fault\(s\): line 1: 'JPEGImages/0000\.jpg' has 1 column\(s\), expected `IMAGE LABEL`",
        ),
        ("a.jpg b.png c\n" * 7, r"7 fault\(s\): line 1: .*line 5: .*and 2 more"),
        ("/a.jpg b.png\n", r"'/a\.jpg' must be a path below the root"),
        ("a.jpg ../b.png\n", r"'\.\./b\.png' must be a path below the root"),
        ("a.jpg a.png\na.png b.png\n", r"2 images with different suffixes have the id a;"),
    ],
)
def test_a_bad_split_is_one_error_with_its_line_numbers(tmp_path, text, message):
    config = write_tree(tmp_path)
    (tmp_path / "labeled.txt").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        open_stream(config, "labeled")
    assert str(tmp_path / "labeled.txt") in str(error.value)


def test_missing_roots_and_splits_are_named_with_their_config_field(tmp_path):
    config = write_tree(tmp_path)
    config.val_split = "nowhere.txt"
    with pytest.raises(InputError, match=r"config\.data\.val_split=nowhere\.txt: no such file .*relative to"):
        open_stream(config, "val")
    config.val_split = ""
    with pytest.raises(InputError, match=r"config\.data\.val_split is empty"):
        open_stream(config, "val")
    config.root = str(tmp_path / "gone")
    with pytest.raises(InputError, match=r"config\.data\.root=.*gone: no such folder"):
        open_stream(config, "labeled")
    config.ood_root = str(tmp_path / "empty")
    with pytest.raises(InputError, match=r"config\.data\.ood_root=.*empty: no such folder"):
        open_stream(config, "ood")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no image below this folder"):
        open_stream(config, "ood")
    (tmp_path / "empty/1.0.0").mkdir()
    (tmp_path / "empty/1.0.0/coco-train.array_record-00000-of-00001").touch()
    with pytest.raises(InputError, match=r"ood_root=.*empty: holds 1\.0\.0/coco-train.* without 1\.0\.0/dataset_info"):
        open_stream(config, "ood")
