import json

import numpy as np
import pytest

from data_pipelines.datasets import dataset_info
from data_pipelines.datasets.colors import distinct_colors
from data_pipelines.errors import InputError

FACTS = {"name": "two", "classes": ["background", "thing"], "ignore_index": 255}


@pytest.mark.parametrize(("name", "classes", "last"), [("voc21", 21, "tvmonitor"), ("context60", 60, "wood")])
def test_shipped_datasets_have_their_published_classes(name, classes, last):
    info = dataset_info(name)
    assert info.num_classes == classes
    assert (info.classes[0], info.classes[1], info.classes[-1]) == ("background", "aeroplane", last)
    assert (info.background, info.ignore_index) == (0, 255)


def test_published_counts_are_those_of_the_published_splits():
    assert dataset_info("voc21").counts == {"train": 10582, "val": 1449}
    assert dataset_info("context60").counts == {"train": 4996, "val": 5104}


def test_voc_palette_has_the_colors_of_the_development_kit():
    palette = dataset_info("voc21").palette
    assert palette.shape == (256, 3)
    assert palette.dtype == np.uint8
    expected = {1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for index, color in expected.items():
        assert tuple(palette[index]) == color
    assert len(np.unique(palette, axis=0)) == 256


def test_a_dataset_of_ones_own_is_read_from_a_path(tmp_path):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(FACTS | {"palette": [[1, 2, 3], [4, 5, 6]]}))
    info = dataset_info(path)
    assert info.classes == ("background", "thing")
    assert info.background is None
    assert info.palette[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert info.palette[2].tolist() == [0, 128, 0]


@pytest.mark.parametrize(("background", "others"), [(None, [0, 1]), (0, [1]), (1, [0])])
def test_without_a_palette_only_the_background_is_black(tmp_path, background, others):
    path = tmp_path / "two.json"
    path.write_text(json.dumps(FACTS | {"background": background}))
    palette = dataset_info(path).palette
    np.testing.assert_array_equal(palette[others], distinct_colors(len(others)))
    assert [index for index in range(2) if not palette[index].any()] == ([] if background is None else [background])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "field 'colour' is unknown"),
        ({"classes": []}, "'classes' must be a list of names"),
        ({"classes": ["a", "b", "a"]}, "names a more than once"),
        ({"ignore_index": 1}, "'ignore_index' is 1: use a value from 2 to 255"),
        ({"background": 2}, "'background' is 2"),
        ({"palette": [[0, 0, 256]]}, "'palette' must be"),
        ({"palette": [[0, 0], [1]]}, "'palette' must be"),
        ({"name": 5}, "'name' must be a text"),
        ({"classes": ["a", "\ud800"]}, "'classes' must be a list of names"),
        ({"ignore_index": True}, "'ignore_index' is True"),
        ({"counts": [1, 2]}, "'counts' must be an object of numbers"),
    ],
)
def test_a_malformed_dataset_file_is_named_with_its_fault(tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(FACTS | change))
    with pytest.raises(InputError, match=message) as error:
        dataset_info(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_is_skipped_and_too_many_levels_are_refused(tmp_path):
    path = tmp_path / "two.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FACTS).encode())
    assert dataset_info(path).name == "two"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"two\.json: not valid json \(lists or objects are nested too deeply\)"):
        dataset_info(path)


def test_unknown_names_and_broken_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match=r"dataset 'voc22' is unknown: name one of .*voc21"):
        dataset_info("voc22")
    path = tmp_path / "cut.json"
    path.write_text('{"name": ')
    with pytest.raises(InputError, match="not valid json"):
        dataset_info(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="must hold one json object"):
        dataset_info(path)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"'name' is missing.*'classes' is missing.*'ignore_index' is missing"):
        dataset_info(path)
