"""Labels of images in shards."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_label
from data_pipelines.labels import shard_store as label_shard_store
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.labels.manifest import read_class_pixels
from data_pipelines.labels.shards import list_path, read_shards
from data_pipelines.sources.records import UnreadableError
from data_pipelines.sources.shard_files import read_ids
from semiovs_jax.ovs.labeling.contact_sheet import FILE_NAME
from tests import fake_ovs
from tests.data_pipelines.tree import open_stream
from tests.fake_ovs import (
    NEVER,
    SHARD_RECORDS,
    ColorOVS,
    assert_killed,
    label_config,
    prepare_images,
    start_labeling,
    write_images,
)

COUNT = 25
SHARDS = -(-COUNT // SHARD_RECORDS)

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ood")
    write_images(root, COUNT)
    return root


@pytest.fixture(scope="module")
def ood(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    prepare_images(images, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(ood, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert label(ood, folder)[:4] == (COUNT, COUNT, True, ())
    return folder


@pytest.fixture
def labels(undisturbed, tmp_path) -> Path:
    """A copy to damage."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for path in undisturbed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def label(ood: Path, folder: Path, *, fingerprint: str = "a" * 64, share=(None, None), **data):
    config, ovs = label_config(ood, folder, **data), ColorOVS(fingerprint=fingerprint)
    return fake_ovs.label(config, ovs, process_index=share[0], process_count=share[1])


def complete(ood: Path, folder: Path, **data) -> bool:
    return fake_ovs.complete(label_config(ood, folder, **data), ColorOVS())


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the manifest's facts about the last run, which include its seconds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found["manifest.json"])
    manifest.pop("last_run", None)
    return found | {"manifest.json": json.dumps(manifest).encode()}


def ids_of(folder: Path) -> list[str]:
    return list(read_ids(folder, "ood"))


def planes(folder: Path, ids: list[str]) -> list[bytes]:
    cache = open_label_cache(folder)
    return [plane.read() for id_ in ids for plane in cache.planes(id_)]


def test_labels_are_a_prepared_dataset_of_the_images_own(ood, undisturbed):
    builder = tfds.builder_from_directory(undisturbed)
    assert builder.info.splits["ood"].shard_lengths == [4, 4, 4, 4, 4, 4, 1]
    assert builder.info.metadata["fingerprint"] == "a" * 64
    ids = ids_of(undisturbed)
    assert sorted(ids) == list(open_stream(label_config(ood, undisturbed).data, "ood").ids())
    skip = {plane: tfds.decode.SkipDecoding() for plane in ("label", "confidence")}
    source = builder.as_data_source(split="ood", decoders=skip)
    assert [example["id"].decode() for example in source] == ids
    assert [example["label"] for example in source] == planes(undisturbed, ids)[::2]
    assert (undisturbed / FILE_NAME).exists()
    assert not list(undisturbed.glob("*.part"))


def test_the_pixels_of_each_class_are_known_without_the_labels(images, ood, undisturbed, tmp_path):
    ids, pixels = read_class_pixels(undisturbed)
    assert list(ids) == list(open_stream(label_config(ood, undisturbed).data, "ood").ids())
    assert pixels.dtype == np.int32
    assert pixels.shape == (COUNT, 22)
    info, cache = dataset_info("voc21"), open_label_cache(undisturbed)
    for id_, row in zip(ids, pixels, strict=True):
        plane = decode_label(cache.planes(id_)[0], info)
        np.testing.assert_array_equal(row[:21], np.bincount(plane.ravel(), minlength=256)[:21])
        assert row[21] == (plane == 255).sum()
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert list(manifest["pixels"].values()) == pixels.sum(0).tolist()
    label(images, tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == (undisturbed / FILE_NAME).read_bytes()
    found = read_class_pixels(tmp_path)
    assert found.ids == ids
    np.testing.assert_array_equal(found.pixels, pixels)
    (tmp_path / "class_pixels.npz").unlink()
    with pytest.raises(InputError, match=r"class_pixels\.npz: no such file; run .*semiovs_jax\.label"):
        read_class_pixels(tmp_path)
    assert label(images, tmp_path).labeled == 0
    np.testing.assert_array_equal(read_class_pixels(tmp_path).pixels, pixels)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), Path.unlink], ids=["empty", "missing"])
def test_lost_counts_make_the_labels_incomplete_and_are_made_again(ood, labels, undisturbed, damage):
    damage(labels / "class_pixels.npz")
    assert not complete(ood, labels)
    assert label(ood, labels).labeled == 0
    assert complete(ood, labels)
    assert contents(labels) == contents(undisturbed)


def list_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("*-of-*.json")}


def test_killed_and_restarted_ends_with_the_same_bytes(ood, undisturbed, tmp_path):
    assert_killed(start_labeling(ood, tmp_path, 0, 1, renames=6), tmp_path)
    done = list_times(tmp_path)
    assert 1 <= len(done) < SHARDS
    assert not complete(ood, tmp_path)
    assert label(ood, tmp_path).labeled < COUNT
    assert list_times(tmp_path).items() >= done.items()
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.slow
def test_two_processes_killed_five_times_end_with_the_same_bytes(tmp_path):
    count, ood, folder = 200, tmp_path / "ood", tmp_path / "labels"
    write_images(tmp_path / "images", count)
    prepare_images(tmp_path / "images", ood)
    renames = {0: [7, 8, 13, NEVER], 1: [12, 5, NEVER]}
    processes = {index: start_labeling(ood, folder, index, 2, renames=renames[index].pop(0)) for index in renames}
    for index in (0, 1, 0, 1, 0):
        assert_killed(processes[index], folder)
        assert 0 < len(list_times(folder)) < count // SHARD_RECORDS
        processes[index] = start_labeling(ood, folder, index, 2, renames=renames[index].pop(0))
    assert [process.wait(timeout=300) for process in processes.values()] == [0, 0]
    assert len(list_times(folder)) == count // SHARD_RECORDS
    assert label(ood, folder).labeled == 0  # no part is left
    assert label(ood, tmp_path / "alone").labeled == count
    assert contents(folder) == contents(tmp_path / "alone")


def test_shares_are_disjoint_and_together_complete(ood, undisturbed, tmp_path):
    first = label(ood, tmp_path, share=(0, 2))
    assert (first.finished, first.labeled) == (False, 13)
    assert not complete(ood, tmp_path)
    second = label(ood, tmp_path, share=(1, 2))
    assert (second.finished, second.labeled) == (True, COUNT - 13)
    assert contents(tmp_path) == contents(undisturbed)


def test_finished_labels_are_recognized_and_kept(ood, undisturbed):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in undisturbed.glob("*array_record*")}
    assert complete(ood, undisturbed)
    assert label(ood, undisturbed).labeled == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


def test_a_cache_reads_each_example_once_and_can_be_pickled(undisturbed, monkeypatch):
    cache = open_label_cache(undisturbed)
    ids = ids_of(undisturbed)
    copy = pickle.loads(pickle.dumps(cache))
    reads = []
    read = type(cache)._read
    monkeypatch.setattr(type(cache), "_read", lambda self, id_: reads.append(id_) or read(self, id_))
    assert [plane.read() for id_ in ids for plane in copy.planes(id_)] == planes(undisturbed, ids)
    assert reads == ids * 2
    assert copy.planes(ids[0])[0].open().read() == planes(undisturbed, ids[:1])[0]
    with pytest.raises(UnreadableError, match="nowhere has no label"):
        cache.planes("nowhere")[0].read()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda shard: shard.unlink(),
            r"00001-of-00007: is missing; it held 4 label\(s\) \(\S+; \S+; \S+; and 1 more\)",
        ),
        (
            lambda shard: shard.write_bytes(shard.read_bytes()[:-7]),
            r"00001-of-00007: has \d+ bytes, expected \d+; it held 4 ",
        ),
        (
            lambda shard: shard.write_bytes(bytes(shard.stat().st_size)),
            r"00001-of-00007: has 0 examples, expected 4; it held 4 ",
        ),
        (lambda shard: (shard.unlink(), list_path(shard).unlink()), r"00001-of-00007\.json: is missing; it held 4 "),
    ],
    ids=["missing", "truncated", "zeroed", "missing with its list"],
)
def test_damaged_shards_are_named_before_training_and_repaired_by_labeling(ood, labels, undisturbed, damage, complaint):
    shard = sorted(labels.glob("*array_record-*-of-?????"))[1]
    damage(shard)
    with pytest.raises(InputError, match=rf"1 fault\(s\) in cached labels: .*{complaint}.*run .*semiovs_jax\.label"):
        complete(ood, labels)
    assert label(ood, labels).labeled == SHARD_RECORDS
    assert complete(ood, labels)
    assert contents(labels) == contents(undisturbed)


def test_a_damaged_list_is_named(ood, labels):
    path = next(iter(labels.glob("*-of-*.json")))
    path.write_text("{")
    with pytest.raises(InputError, match=rf"{path.name}: cannot be read .*remove it, then run"):
        complete(ood, labels)


def test_damaged_examples_are_bad_records(labels):
    shard = read_shards(labels)[0]
    content = bytearray(shard.path.read_bytes())
    at = 1000
    assert any(content[at : at + 60])
    content[at : at + 60] = bytes(60)
    shard.path.write_bytes(content)
    cache = open_label_cache(labels)
    assert cache.faults() == []  # does not read them
    messages = []
    for id_ in shard.content.ids:
        try:
            cache.planes(id_)[0].read()
        except UnreadableError as error:
            messages.append(f"{id_} {error}")
    assert messages
    for message in messages:
        assert re.search(rf"(\S+) .*{shard.path.name}: the label of \1 cannot be read .*remove the file and", message)


def test_stale_labels_are_refused(ood, undisturbed):
    before = contents(undisturbed)
    with pytest.raises(InputError, match=f"stale labels.*fingerprint was {'a' * 8}, is {'b' * 8};"):
        label(ood, undisturbed, fingerprint="b" * 64)
    assert contents(undisturbed) == before


def test_labels_never_overwrite_another_dataset(images, tmp_path):
    ood = tmp_path / "1.0.0"
    prepare_images(images, ood)
    before = sorted(tmp_path.rglob("*"))
    for folder in (ood, tmp_path):
        with pytest.raises(InputError, match=r"holds a dataset without manifest\.json.*labels_dir"):
            label(tmp_path, folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_of_files_stay_valid_for_shards_of_the_same_images(images, ood, tmp_path):
    label(images, tmp_path)
    assert complete(ood, tmp_path)
    next(iter((tmp_path / "labels").glob("*.png"))).unlink()
    assert not complete(ood, tmp_path)
    assert label(ood, tmp_path).labeled == 1
    assert not list(tmp_path.glob("*array_record*"))


def test_a_changed_set_is_labeled_where_labels_lack(ood, labels, tmp_path):
    write_images(tmp_path / "images", COUNT + 4)
    prepare_images(tmp_path / "images", tmp_path / "more")
    before = read_class_pixels(labels).ids
    kept = planes(labels, before)
    assert not complete(tmp_path / "more", labels)
    assert not label(tmp_path / "more", labels, share=(0, 2)).finished
    assert planes(labels, before) == kept
    assert label(tmp_path / "more", labels, share=(1, 2)).finished
    assert complete(tmp_path / "more", labels)
    assert complete(ood, labels)  # a part of it
    assert planes(labels, before) == kept
    assert len({path.name.split("-")[0] for path in labels.glob("ovs_*")}) == 1
    assert len(read_class_pixels(labels).ids) == len(ids_of(labels)) == COUNT + 4


def bad_images(root: Path) -> None:
    """Seven images, of which one is cut short, and one is empty."""
    write_images(root, 7)
    whole = (root / "001.jpg").read_bytes()
    (root / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "002.jpg").write_bytes(b"no image")


def test_bad_images_are_named_and_counted(tmp_path):
    bad_images(tmp_path / "images")
    ood, labels = tmp_path / "ood", tmp_path / "labels"
    prepare_images(tmp_path / "images", ood)
    with pytest.raises(InputError, match=r"ood: example \d: is damaged.*max_bad_records=1"):
        label(ood, labels, max_bad_records=1)
    assert not complete(ood, labels)
    report = label(ood, labels, max_bad_records=2)
    assert (report.images, report.finished, set(report.bad)) == (7, True, {"001", "002"})
    manifest = json.loads((labels / "manifest.json").read_text())
    assert manifest["counts"] == {"images": 7, "labeled": 5, "bad": 2}
    assert "is damaged" in manifest["bad"]["001"]
    assert complete(ood, labels)
    assert not (labels / "bad").exists()
    assert set(read_class_pixels(labels).ids).isdisjoint(("001", "002"))
    with pytest.raises(UnreadableError, match=r"001 has no label; .* is damaged"):
        open_label_cache(labels).planes("001")[1].read()
    before = {path: path.read_bytes() for path in labels.iterdir()}
    assert label(ood, labels, max_bad_records=2).labeled == 0
    assert {path: path.read_bytes() for path in labels.iterdir()} == before

    write_images(tmp_path / "images", 7)  # repaired
    prepare_images(tmp_path / "images", ood)
    assert label(ood, labels).labeled == 2
    assert json.loads((labels / "manifest.json").read_text())["bad"] == {}
    label(ood, tmp_path / "fresh")
    assert contents(labels) == contents(tmp_path / "fresh")


def test_a_shard_of_bad_images_alone_is_done(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(SHARD_RECORDS):
        (tmp_path / f"images/{i}.jpg").write_bytes(b"no image")
    Image.new("RGB", (20, 20)).save(tmp_path / "images/x.png")
    prepare_images(tmp_path / "images", tmp_path / "ood")
    report = label(tmp_path / "ood", tmp_path / "labels", max_bad_records=SHARD_RECORDS)
    assert (report.labeled, report.finished, len(report.bad)) == (1, True, SHARD_RECORDS)
    assert complete(tmp_path / "ood", tmp_path / "labels")
    assert tfds.builder_from_directory(tmp_path / "labels").info.splits["ood"].shard_lengths == [0, 1]


def test_shards_are_neither_small_nor_many(monkeypatch):
    monkeypatch.setattr(label_shard_store, "FEWEST_RECORDS", 64)
    assert [label_shard_store.part_length(count) for count in (5, 32_769, 118_287, 10_000_000)] == [64, 65, 232, 1024]
