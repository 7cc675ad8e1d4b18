import ast
import collections
import logging
import pathlib

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

import data_pipelines
from data_pipelines.errors import InputError
from data_pipelines.pipeline import STREAMS
from data_pipelines.sources.records import File
from tests.data_pipelines import tree
from tests.data_pipelines.tree import validation_records, write_cached_labels, write_tree

OOD_IDS = ["000", "002", "004", "train/001", "train/003"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc")
    config = write_tree(root)
    write_cached_labels(root, root / "cache", OOD_IDS)
    return config


def train_data(config, streams=STREAMS, batch_size=4, seed=0, **options):
    return tree.train_data(config, streams, batch_size=batch_size, seed=seed, **options)


def take(data, steps):
    return [next(data.iterator) for _ in range(steps)]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for stream in a:
            assert a[stream].keys() == b[stream].keys()
            for field in a[stream]:
                np.testing.assert_array_equal(a[stream][field], b[stream][field], err_msg=f"{stream}/{field}")


def test_no_module_of_the_package_imports_jax():
    for path in pathlib.Path(data_pipelines.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"jax", "flax", "semiovs_jax"}, path


def test_a_batch_has_the_fields_shapes_and_types_of_every_stream(config):
    (batch,) = take(train_data(config, ood_labels_dir=config.root + "/cache"), 1)
    planes = {"labeled": {"label"}, "unlabeled": set(), "mix": set(), "ood": {"label", "confidence"}}
    assert batch.keys() == planes.keys()
    for stream, extra in planes.items():
        fields = batch[stream]
        assert fields.keys() == {"image", "valid", "index", "substituted"} | extra
        assert (fields["image"].shape, fields["image"].dtype) == ((4, 33, 33, 3), np.uint8)
        assert (fields["valid"].shape, fields["valid"].dtype) == ((4, 33, 33), np.bool_)
        assert (fields["index"].shape, fields["index"].dtype) == ((4,), np.int32)
        assert (fields["substituted"].dtype, fields["substituted"].tolist()) == (np.int32, [0] * 4)
        for plane in extra:
            assert (fields[plane].shape, fields[plane].dtype) == ((4, 33, 33), np.uint8)
        assert not fields["image"][~fields["valid"]].any()


def test_padding_is_ignored_in_labels_and_carries_no_confidence(config):
    batches = take(train_data(config, ood_labels_dir=config.root + "/cache"), 6)
    padding = 0
    for batch in batches:
        padding += (~batch["ood"]["valid"]).sum()
        assert (batch["labeled"]["label"][~batch["labeled"]["valid"]] == 255).all()
        for plane, inside, outside in (("label", 3, 255), ("confidence", 200, 0)):
            expected = np.where(batch["ood"]["valid"], inside, outside)
            np.testing.assert_array_equal(batch["ood"][plane], expected)
    assert padding > 0


def test_confidence_is_read_only_where_it_is_asked_for(config):
    labels = {"ood_labels_dir": config.root + "/cache"}
    (batch,) = take(train_data(config, **labels), 1)
    (plain,) = take(train_data(config, **labels, ood_confidence=False), 1)
    del batch["ood"]["confidence"]
    assert plain["ood"].keys() == batch["ood"].keys()
    for field, array in batch["ood"].items():
        np.testing.assert_array_equal(plain["ood"][field], array)


def test_an_index_names_the_record_that_is_shown(config):
    for batch in take(train_data(config), 4):
        for stream, offset in (("labeled", 0), ("unlabeled", 3), ("mix", 3)):
            for image, valid, index in zip(*(batch[stream][k] for k in ("image", "valid", "index")), strict=True):
                assert abs(image[valid].mean() - (index + offset + 20)) < 0.8


def test_images_may_be_scaled_by_their_short_side(config):
    """Images of 30..34 x 40..46 fitted to a short side of 15 are whole in the crop."""
    changed = config.copy_and_resolve_references()
    changed.update(scale_short_side=15, scale_range=(1.0, 1.0))
    for batch in take(train_data(changed), 3):
        for stream in STREAMS:
            rows = batch[stream]["valid"].any(2).sum(1)
            columns = batch[stream]["valid"].any(1).sum(1)
            assert set(rows) == {15}
            assert min(columns) >= 18
            assert max(columns) <= 23


def test_scaled_decoding_shows_the_same_views_a_little_differently(config):
    small, scaled = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    small.scale_range = scaled.scale_range = (0.2, 0.4)
    scaled.scaled_decode = True
    differences = []
    runs = (take(train_data(c, ood_labels_dir=config.root + "/cache"), 4) for c in (small, scaled))
    for whole, other in zip(*runs, strict=True):
        for stream in STREAMS:
            images = [batch[stream].pop("image").astype(int) for batch in (whole, other)]
            differences.append(abs(images[0] - images[1]).max())
        assert_equal([whole], [other])
    assert 0 < max(differences) < 12


def test_lengths_and_steps_per_epoch(config):
    data = train_data(config, batch_size=3)
    assert data.lengths == {"labeled": 3, "unlabeled": 7, "mix": 7, "ood": 5}
    assert data.steps_per_epoch == 2
    assert train_data(config, streams=("labeled",), batch_size=2).steps_per_epoch == 1
    assert train_data(config, batch_size=16).steps_per_epoch == 1


def test_every_epoch_of_every_stream_is_a_new_order_of_all_its_records(config):
    data = train_data(config, batch_size=1)
    batches = take(data, 4 * 7)
    orders = {stream: [int(batch[stream]["index"][0]) for batch in batches] for stream in STREAMS}
    for stream, length in data.lengths.items():
        epochs = [tuple(orders[stream][i : i + length]) for i in range(0, 28 - length + 1, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert len(set(epochs)) > 1
    assert orders["unlabeled"] != orders["mix"]


def test_epochs_show_a_record_differently(config):
    batches = take(train_data(config, streams=("labeled",), batch_size=3), 3)
    views = [batch["labeled"]["image"][batch["labeled"]["index"] == 0][0] for batch in batches]
    assert not np.array_equal(views[0], views[1])
    assert not np.array_equal(views[1], views[2])


def test_batches_depend_on_the_seed_and_on_nothing_else(config):
    expected = take(train_data(config), 4)
    assert_equal(take(train_data(config), 4), expected)
    for num_threads, prefetch in ((1, 1), (4, 3), (0, 0)):
        other = config.copy_and_resolve_references()
        other.update(num_threads=num_threads, prefetch=prefetch)
        assert_equal(take(train_data(other), 4), expected)
    assert not np.array_equal(take(train_data(config, seed=1), 1)[0]["mix"]["image"], expected[0]["mix"]["image"])


def test_a_stream_does_not_depend_on_the_other_streams(config):
    alone = take(train_data(config, streams=("labeled",)), 3)
    together = [{"labeled": batch["labeled"]} for batch in take(train_data(config), 3)]
    assert_equal(alone, together)


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_hold_the_blocks_of_the_global_batch_in_order(config, process_count):
    expected = take(train_data(config), 5)
    shares = [take(train_data(config, process_index=i, process_count=process_count), 5) for i in range(process_count)]
    joined = [
        {s: {f: np.concatenate([part[s][f] for part in parts]) for f in parts[0][s]} for s in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(joined, expected)


def test_a_process_opens_the_files_of_its_own_rows_alone(config, monkeypatch):
    opened: collections.Counter[str] = collections.Counter()
    monkeypatch.setattr(File, "open", lambda file: opened.update([file.name]) or file.path.open("rb"))
    one_by_one = config.copy_and_resolve_references()
    one_by_one.update(num_threads=0, prefetch=0)
    files = {"labeled": 2, "unlabeled": 1, "mix": 1, "ood": 3}  # image, label, confidence
    counts = []
    for index in range(2):
        shares = {"process_index": index, "process_count": 2, "ood_labels_dir": config.root + "/cache"}
        data = train_data(one_by_one, **shares)
        opened.clear()
        rows = [len(batch[stream]["index"]) for batch in take(data, 3) for stream in files]
        assert rows == [2] * (3 * len(files))
        counts.append(sum(opened.values()))
    assert counts == [3 * 2 * sum(files.values())] * 2


@pytest.mark.parametrize("process_count", [1, 2])
def test_a_restored_position_continues_exactly(config, process_count):
    options = {"process_index": process_count - 1, "process_count": process_count}
    data = train_data(config, **options)
    take(data, 3)
    state = data.iterator.get_state()
    expected = take(data, 5)
    fresh = train_data(config, **options)
    fresh.iterator.set_state(state)
    assert_equal(take(fresh, 5), expected)
    fresh.iterator.set_state(state)
    assert_equal(take(fresh, 2), expected[:2])


def test_the_position_goes_through_a_checkpoint(config, tmp_path):
    data = train_data(config)
    take(data, 3)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(data.iterator)))
        manager.wait_until_finished()
        expected = take(data, 3)
        fresh = train_data(config)
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh.iterator)))
    assert_equal(take(fresh, 3), expected)


def test_ood_images_may_join_the_unlabeled_ones(config):
    data = train_data(config, streams=("labeled", "unlabeled", "mix"), ood_as_unlabeled=True, batch_size=1)
    assert data.lengths == {"labeled": 3, "unlabeled": 12, "mix": 12}
    batches = take(data, 12)
    assert sorted(int(batch["unlabeled"]["index"][0]) for batch in batches) == list(range(12))
    for batch in batches:
        index = batch["unlabeled"]["index"][0]
        if index >= 7:
            seed = 100 + int(OOD_IDS[index - 7][-3:])
            assert abs(batch["unlabeled"]["image"][batch["unlabeled"]["valid"]].mean() - (seed + 20)) < 0.8


def test_requests_that_cannot_be_met_are_refused(config):
    with pytest.raises(InputError, match=r"config\.batch_size=3 must be a positive multiple of the 2 process"):
        train_data(config, batch_size=3, process_count=2)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_without_allowance_a_truncated_jpeg_is_one_error_that_names_it(tmp_path):
    config = write_tree(tmp_path)
    cut(tmp_path / "JPEGImages/0005.jpg")
    with pytest.raises(
        InputError, match=r"0005\.jpg: is damaged.*1 record\(s\) cannot be read and config\.data\.max_bad"
    ):
        take(train_data(config), 3)


def test_bad_records_are_named_once_counted_and_replaced_by_the_next(tmp_path, caplog):
    config = write_tree(tmp_path)
    cut(tmp_path / "JPEGImages/0005.jpg")
    (tmp_path / "JPEGImages/0006.jpg").unlink()
    config.max_bad_records = 2
    data = train_data(config, batch_size=7)
    with caplog.at_level(logging.WARNING):
        batches = take(data, 4)
    assert set(data.bad_records) == {"JPEGImages/0005", "JPEGImages/0006"}
    assert len([r for r in caplog.records if "bad record" in r.message]) == 2
    for batch in batches:
        for stream in ("unlabeled", "mix"):
            by_index = sorted(zip(batch[stream]["index"].tolist(), batch[stream]["substituted"].tolist(), strict=True))
            # Records 2 and 3 of the split are bad: 4 is shown for itself and for both of them.
            assert by_index == [(0, 0), (1, 0), (4, 0), (4, 1), (4, 2), (5, 0), (6, 0)]
    assert_equal(take(train_data(config, batch_size=7), 4), batches)


def test_too_many_bad_records_are_an_error_that_counts_them(tmp_path):
    config = write_tree(tmp_path)
    for id_ in ("0005", "0006", "0007"):
        (tmp_path / f"JPEGImages/{id_}.jpg").unlink()
    config.max_bad_records = 2
    with pytest.raises(InputError, match=r"3 record\(s\) cannot be read and config\.data\.max_bad_records=2"):
        take(train_data(config, batch_size=7), 3)


def test_when_nothing_can_be_read_the_search_ends(tmp_path):
    config = write_tree(tmp_path, labeled=2)
    for id_ in ("0000", "0001"):
        (tmp_path / f"JPEGImages/{id_}.jpg").unlink()
    config.max_bad_records = 9
    with pytest.raises(InputError, match="none of the 2 records of a stream can be read"):
        take(train_data(config, streams=("labeled",)), 1)


def test_a_wrong_label_is_an_error_even_where_bad_records_are_allowed(tmp_path):
    config = write_tree(tmp_path, labeled=1)
    config.max_bad_records = 9
    tree.write_label(tmp_path / "SegmentationClass/0000.png", np.full((30, 40), 77, np.uint8))
    with pytest.raises(InputError, match=r"0000\.png: label 77 is out of range"):
        take(train_data(config, streams=("labeled",)), 1)
    tree.write_label(tmp_path / "SegmentationClass/0000.png", np.zeros((40, 30), np.uint8))
    with pytest.raises(InputError, match=r"0000\.png: label is 30x40 .* but .*0000\.jpg is 40x30"):
        take(train_data(config, streams=("labeled",)), 1)


def test_an_image_without_cached_label_is_a_bad_record(tmp_path):
    config = write_tree(tmp_path)
    write_cached_labels(tmp_path, tmp_path / "cache", OOD_IDS[1:])
    with pytest.raises(InputError, match=r"labels/000\.png: cannot be read"):
        take(train_data(config, ood_labels_dir=str(tmp_path / "cache")), 3)


def test_validation_records_come_whole_in_order_with_sizes_from_headers(config):
    records = validation_records(config)
    assert len(records) == 2
    assert [record["id"] for record in records] == ["JPEGImages/0010", "JPEGImages/0011"]
    assert records.sizes == [record["label"].shape for record in records] == [(30, 43), (31, 44)]
    np.testing.assert_array_equal(records[-1]["label"], tree.label(11))
    assert records[1]["image"].shape == (31, 44, 3)
    assert [record["id"] for record in records[:1]] == ["JPEGImages/0010"]
    with pytest.raises(IndexError):
        records[2]


def test_validation_never_substitutes(tmp_path):
    config = write_tree(tmp_path)
    config.max_bad_records = 9
    cut(tmp_path / "JPEGImages/0010.jpg")
    with pytest.raises(InputError, match=r"0010\.jpg: is damaged"):
        validation_records(config)[0]
