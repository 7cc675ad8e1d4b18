"""The order of records: mixtures by weight, streams seen once, rare classes drawn more often."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.labels.manifest import write_class_pixels
from data_pipelines.loading.order import batches_at_most, draw_positions
from data_pipelines.loading.selection import Filter, Selection, filter_fault, repeat_factors
from data_pipelines.sources.folders import FolderSource
from data_pipelines.sources.mixture import Mixture
from tests.data_pipelines import tree
from tests.data_pipelines.tree import image, jpeg, write_cached_labels, write_tree


def source(count: int, name: str = "a") -> FolderSource:
    return FolderSource(Path(), tuple(f"{name}/{i}.jpg" for i in range(count)))


def draws(dataset, count: int, first: int = 0) -> list[int]:
    return [dataset[i] for i in range(first, first + count)]


def test_every_epoch_is_a_new_order_of_all_records():
    positions = draw_positions(source(5), seed=3)
    epochs = [draws(positions, 5, 5 * epoch) for epoch in range(20)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10
    again = pickle.loads(pickle.dumps(positions))
    assert draws(again, 100) == draws(positions, 100) != draws(draw_positions(source(5), seed=4), 100)


def test_parts_of_a_mixture_are_drawn_by_their_weights():
    mixture = Mixture((source(4), source(100, "b")), weights=(3.0, 1.0), once=(False, False))
    found = draws(draw_positions(mixture, seed=0), 400)
    assert sum(position < 4 for position in found) == 300
    for start in range(0, 400, 8):  # every batch is close to the shares
        assert 5 <= sum(position < 4 for position in found[start : start + 8]) <= 7
    assert Counter(position for position in found if position >= 4).most_common(1)[0][1] == 1
    assert batches_at_most(mixture, 8) is None


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize(("length", "weight"), [(50, 1.0), (9, 5.0), (2, 1.0)])
def test_a_stream_comes_in_order_and_is_not_seen_twice(length: int, weight: float, batch_size: int):
    mixture = Mixture((source(7), source(length, "b")), weights=(2.0, weight), once=(False, True))
    positions = draw_positions(mixture, seed=0)
    batches = batches_at_most(mixture, batch_size)
    assert batches is not None
    found = [position - 7 for position in draws(positions, batches * batch_size) if position >= 7]
    assert found == list(range(len(found)))
    assert len(found) <= length
    later = draws(positions, (batches + 3) * batch_size + 3 * int(1 + 2 / weight))
    assert sum(position >= 7 for position in later) >= length  # and it is used to the end, but for a batch or two


def test_rare_classes_are_drawn_more_often():
    pixels = np.zeros((100, 3), int)
    pixels[:, 0] = 10
    pixels[:4, 1] = 1  # in 4 % of the images
    repeats = repeat_factors(pixels, threshold=0.16)
    np.testing.assert_allclose(repeats, [2.0] * 4 + [1.0] * 96)
    selection = Selection(np.arange(100), repeats)
    counts = Counter(draws(draw_positions(source(100), 0, selection), 100 * 50))
    share = sum(counts[i] for i in range(4)) / 5000
    assert share == pytest.approx(8 / 104, abs=0.003)
    assert set(counts) == set(range(100))
    np.testing.assert_array_equal(repeat_factors(pixels, threshold=0.01), 1.0)


def test_a_selection_draws_only_its_images():
    mixture = Mixture((source(6), source(6, "b")), weights=(1.0, 1.0), once=(False, False))
    selection = Selection(np.array([1, 4, 5, 9]), None)
    assert set(draws(draw_positions(mixture, 0, selection), 60)) == {1, 4, 5, 9}
    with pytest.raises(InputError, match=r"leaves none of the 6 images of a source \(b/0, ...\)"):
        draw_positions(mixture, 0, Selection(np.array([1]), None))


@pytest.fixture
def mixed(tmp_path: Path):
    """A tree whose OOD images are a mixture of two folders, with cached labels."""
    config = write_tree(tmp_path)
    for i in range(3):
        path = tmp_path / "web" / f"{i:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(image(30 + i)))
    sources = [{"name": "coco", "root": "ood", "weight": 3}, {"name": "web", "root": str(tmp_path / "web")}]
    (tmp_path / "mixture.json").write_text(json.dumps({"sources": sources}))
    config.ood_root = str(tmp_path / "mixture.json")
    return config


def batches_of(config, count: int, **options):
    data = tree.train_data(config, ("unlabeled", "ood"), batch_size=2, **options)
    return data, [next(data.iterator) for _ in range(count)]


def test_a_mixture_trains_with_labels_joined_by_the_ids_it_gives(mixed, tmp_path: Path):
    ids = tree.open_stream(mixed, "ood").ids()
    assert ids == [f"coco/{id_}" for id_ in ("000", "002", "004", "train/001", "train/003")] + [
        f"web/{i:03d}" for i in range(3)
    ]
    for id_ in ids:
        folder = {"coco": tmp_path / "ood", "web": tmp_path / "web"}[id_.split("/")[0]]
        name = id_.partition("/")[2]
        (tmp_path / "one/ood" / id_).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one/ood" / f"{id_}.jpg").write_bytes((folder / f"{name}.jpg").read_bytes())
    write_cached_labels(tmp_path / "one", tmp_path / "cache", ids)
    data, batches = batches_of(mixed, 8, ood_labels_dir=str(tmp_path / "cache"))
    assert data.lengths["ood"] == 8
    indices = [int(index) for batch in batches for index in batch["ood"]["index"]]
    assert sum(index < 5 for index in indices) == 12
    for batch in batches:
        assert set(np.unique(batch["ood"]["label"][batch["ood"]["valid"]])) == {3}


def test_filters_read_the_pixels_of_cached_labels(mixed, tmp_path: Path):
    ids = tree.open_stream(mixed, "ood").ids()
    pixels = np.zeros((len(ids), 22), np.int32)
    pixels[:, 0] = 90
    pixels[:, 1] = [10, 20, 5, 10, 0, 30, 10, 10]
    write_class_pixels(tmp_path / "cache", ids, pixels)
    mixed.ood_min_foreground = 0.09
    data = tree.train_data(mixed, ("unlabeled", "ood"), batch_size=2, ood_labels_dir=str(tmp_path / "cache"))
    assert data.lengths["ood"] == 8
    mixed.ood_min_foreground = 0.5
    with pytest.raises(
        InputError, match=r"none of the 8 OOD images has that share of foreground, the largest is 0\.250"
    ):
        batches_of(mixed, 0, ood_labels_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("keys", "ood", "labels", "message"),
    [
        (Filter(0.0, 0.0), "none", "online", None),
        (Filter(0.1, 0.2), "ovs", "cached", None),
        (Filter(0.0, 0.2), "ovs", "online", "config.data.ood_repeat_threshold=0.2: these need cached OVS labels"),
        (Filter(0.1, 0.0), "unlabeled", "cached", "config.data.ood_min_foreground=0.1: these need cached OVS labels"),
    ],
)
def test_a_filter_needs_cached_labels(keys: Filter, ood: str, labels: str, message: str | None):
    fault = filter_fault(keys, ood, labels)
    assert fault is None if message is None else fault.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot be read as a mixture"),
        ('{"sources": []}', r'must hold \{"sources"'),
        ('{"sources": [{"name": "a"}]}', r"source 0 lacks 'root'"),
        ('{"sources": [{"name": "a/b", "root": "ood"}]}', r"source 0 has the name 'a/b': use a word"),
        ('{"sources": [{"name": "a", "root": "ood", "weight": 0}]}', r"source 0 has the weight 0: use a positive"),
        (f'{{"sources": [{{"name": "a", "root": "ood", "weight": 1{"0" * 400}}}]}}', r"source 0 has the weight 1000"),
        ('{"sources": [{"name": "a", "root": "\\ud800"}]}', r"source 0 has 'root': '\\ud800', which is not UTF-8"),
        ('{"sources": [{"name": "a", "root": "ood", "once": 1}]}', r"'once': 1, which has the wrong type"),
        ('{"sources": [{"name": "a", "root": "ood", "share": 1}]}', r"unknown field 'share'; known are name, root"),
        (
            '{"sources": [{"name": "a", "root": "ood"}, {"name": "a", "root": "ood"}]}',
            r"several sources have the name\(s\) a;",
        ),
        ('{"sources": [{"name": "a", "root": "none"}]}', r"mixture\.json: source a: root=.*none: no such folder"),
    ],
)
def test_a_mixture_that_says_something_else_is_refused(content: str, message: str, mixed, tmp_path: Path):
    (tmp_path / "mixture.json").write_text(content)
    with pytest.raises(InputError, match=message):
        tree.open_stream(mixed, "ood")


def test_weights_have_no_effect_among_unlabeled_images(mixed, tmp_path: Path):
    with pytest.raises(InputError, match=r"weights and 'once' have no effect"):
        tree.train_data(mixed, ("unlabeled", "mix"), batch_size=2, ood_as_unlabeled=True)
    mixed.ood_split = "train"
    with pytest.raises(InputError, match=r"ood_split=train: .*names the splits of its sources"):
        tree.open_stream(mixed, "ood")
