import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_image, image_size
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.pipeline import STREAMS
from data_pipelines.sources.records import UnreadableError
from data_pipelines.sources.shard_files import shard_path, write_metadata, write_shard
from semiovs_jax.ovs.labeling.contact_sheet import FILE_NAME
from tests import fake_ovs
from tests.data_pipelines.tree import open_stream, train_data, validation_records, write_cached_labels, write_tree
from tests.fake_ovs import ColorOVS, label_config, write_images

FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "id": tfds.features.Text(),
    "area": np.int64,
}


def prepare(folder: Path, splits: dict[str, dict[str, bytes]], **changes) -> Path:
    """Prepares a dataset of {split: {id: encoded image}} below `folder` and returns the folder of its version."""
    features = {name: feature for name, feature in (FEATURES | changes).items() if feature is not None}

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            structure = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=structure, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(images) for split, images in splits.items()}

        def _generate_examples(self, images):
            for key, (id_, image) in enumerate(images.items()):
                example = {"image": image, "id": id_, "area": 7, "name": id_}
                yield key, {name: example[name] for name in features}

    builder = Toy(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root, 9)
    return root


def encoded(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root).with_suffix("")): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def dataset(images, tmp_path_factory) -> Path:
    found = list(encoded(images).items())
    return prepare(tmp_path_factory.mktemp("tfds"), {"train": dict(found[:6]), "extra": dict(found[6:])})


def ood(root: Path, split: str = "", labels: str | None = None):
    return open_stream(ConfigDict({"ood_root": str(root), "ood_split": split}), "ood", labels)


def test_records_are_the_examples_with_their_own_bytes(images, dataset):
    source, expected = ood(dataset), encoded(images)
    assert len(source) == 9
    assert source.ids() == list(expected)
    for index, (id_, content) in enumerate(expected.items()):
        record = source[index]
        assert (record.id, record.label, record.confidence) == (id_, None, None)
        assert record.image.read() == record.image.open().read() == content
    assert decode_image(source[4].image).shape[:2] == image_size(source[4].image)
    assert "tensorflow" not in sys.modules


def test_splits_are_chosen_by_name(images, dataset):
    ids = list(encoded(images))
    assert ood(dataset, "extra").ids() == ids[6:]
    assert ood(dataset, "train").ids() == ids[:6]
    with pytest.raises(
        InputError, match=r"cannot open the split 'val'.*set config.data.ood_split to one of train, extra"
    ):
        ood(dataset, "val")


def test_the_highest_version_below_the_root_is_read(images, dataset, tmp_path):
    for version in ("1.0.0", "1.9.0", "1.10.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"1\.10\.0: cannot be read as a prepared dataset"):
        ood(tmp_path)
    assert len(ood(dataset.parent)) == 9


def test_cached_labels_join_by_id(dataset, tmp_path):
    record = ood(dataset, labels=str(tmp_path))[0]
    assert record.label.path == tmp_path / "labels" / f"{record.id}.png"
    assert record.confidence.path == tmp_path / "confidence" / f"{record.id}.png"


def test_labels_equal_those_of_the_same_files_in_a_folder(images, dataset, tmp_path):
    for root, name in ((images, "files"), (dataset, "shards")):
        config = label_config(root, tmp_path / name)
        assert fake_ovs.label(config, ColorOVS()).labeled == 9
        assert fake_ovs.complete(config, ColorOVS())
        assert (tmp_path / name / FILE_NAME).exists()
    shards, files = (open_label_cache(tmp_path / name) for name in ("shards", "files"))
    for id_ in ood(dataset).ids():
        assert [plane.read() for plane in shards.planes(id_)] == [plane.read() for plane in files.planes(id_)]


def test_a_dataset_without_the_features_is_refused(images, tmp_path):
    content = {"train": encoded(images)}
    path = prepare(tmp_path / "a", content, id=None, name=tfds.features.Text())
    with pytest.raises(
        InputError, match=r"examples lack 'id' \(Text\); they hold .*'image' \(Image\), 'name' \(Text\)"
    ):
        ood(path)
    path = prepare(tmp_path / "b", content, image=tfds.features.Text())
    with pytest.raises(InputError, match=r"examples lack 'image' \(Image\)"):
        ood(path)


def test_ids_must_be_paths_and_differ(images, tmp_path):
    image = (images / "001.jpg").read_bytes()
    path = prepare(tmp_path / "a", {"train": {"../x": image}})
    with pytest.raises(InputError, match=r"example 0 has the id '\.\./x'"):
        ood(path).ids()
    path = prepare(tmp_path / "b", {"train": {"x": image}, "extra": {"x": image}})
    with pytest.raises(InputError, match=r"example 0 and .*example 1 have the same id x"):
        fake_ovs.label(label_config(path, tmp_path / "labels"), ColorOVS())


def test_an_image_that_cannot_be_decoded_is_a_bad_record(images, tmp_path):
    content = encoded(images)
    content["001"] = content["001"][:300]
    path = prepare(tmp_path, {"train": content})
    config = label_config(path, tmp_path / "labels", max_bad_records=1)
    assert fake_ovs.label(config, ColorOVS()).bad == ("001",)


def test_other_file_formats_are_refused(images, tmp_path):
    path = prepare(tmp_path, {"train": encoded(images)})
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"its files are tfrecord, not array_record"):
        ood(path)


def test_damaged_shards_are_named(images, tmp_path):
    path = prepare(tmp_path, {"train": encoded(images)})
    (shard,) = path.glob("*.array_record*")
    content = shard.read_bytes()
    at = len(content) // 12
    shard.write_bytes(content[:at] + bytes(60) + content[at + 60 :])
    with pytest.raises(UnreadableError, match=r"1\.0\.0: example \d cannot be read"):
        ood(path).ids()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match=r"1\.0\.0: example 0 has no id"):
        ood(path).ids()
    shard.unlink()
    with pytest.raises(UnreadableError, match=r"1\.0\.0: example 0 cannot be read .*No such file"):
        ood(path).ids()


def _as_shards(config: ConfigDict, folder: Path) -> ConfigDict:
    """The tree of `config` as prepared datasets, images in another order than the lists'."""
    root, ood_root = Path(config.root), Path(config.ood_root)
    ids = [f"JPEGImages/{path.stem}" for path in sorted((root / "JPEGImages").iterdir(), reverse=True)]
    plain = {"image": tfds.features.Image(shape=(None, None, 3)), "id": tfds.features.Text()}
    labeled = tfds.features.FeaturesDict(plain | {"label": tfds.features.Image(shape=(None, None, 1))})
    examples = [
        {
            "image": (root / f"{id_}.jpg").read_bytes(),
            "id": id_,
            "label": (root / "SegmentationClass" / f"{Path(id_).name}.png").read_bytes(),
        }
        for id_ in ids
    ]
    halves = [examples[:5], examples[5:]]
    shards = [write_shard(shard_path(folder / "voc", "voc", "train", i, 2), labeled, halves[i]) for i in range(2)]
    write_metadata(folder / "voc", "voc", labeled, {"train": shards})
    plain = tfds.features.FeaturesDict(plain)
    images = [{"image": content, "id": id_} for id_, content in encoded(ood_root).items()]
    shards = [write_shard(shard_path(folder / "ood", "ood", "train", 0, 1), plain, images)]
    write_metadata(folder / "ood", "ood", plain, {"train": shards})
    for split in ("labeled", "unlabeled", "val"):
        shutil.copy(root / f"{split}.txt", folder / "voc")
    changed = config.copy_and_resolve_references()
    changed.update(root=str(folder / "voc"), ood_root=str(folder / "ood"))
    return changed


def test_shards_and_folders_give_the_same_batches(tmp_path):
    config = write_tree(tmp_path / "tree")
    write_cached_labels(tmp_path / "tree", tmp_path / "cache", list(encoded(tmp_path / "tree" / "ood")))
    in_shards = _as_shards(config, tmp_path / "shards")
    options = {"batch_size": 2, "seed": 5, "streams": STREAMS, "ood_labels_dir": str(tmp_path / "cache")}
    folder, shards = (train_data(c, **options).iterator for c in (config, in_shards))
    for _ in range(20):
        expected, found = next(folder), next(shards)
        for stream in STREAMS:
            assert found[stream].keys() == expected[stream].keys()
            for field, array in expected[stream].items():
                np.testing.assert_array_equal(found[stream][field], array, err_msg=f"{stream} {field}")
    for expected, found in zip(validation_records(config), validation_records(in_shards), strict=True):
        assert found["id"] == expected["id"]
        np.testing.assert_array_equal(found["label"], expected["label"])
        np.testing.assert_array_equal(found["image"], expected["image"])


def test_splits_of_shards_are_lists_or_the_datasets_own(tmp_path):
    config = _as_shards(write_tree(tmp_path / "tree"), tmp_path / "shards")
    config.val_split = "train"
    assert len(validation_records(config)) == 12
    config.val_split = "nowhere.txt"
    with pytest.raises(InputError, match=r"cannot open the split 'nowhere.txt'.*set config\.data\.val_split to one of"):
        validation_records(config)
    config.val_split = "other.txt"
    (tmp_path / "shards/voc/other.txt").write_text("JPEGImages/0001.jpg\nJPEGImages/none.jpg\n")
    with pytest.raises(InputError, match=r"other\.txt: 1 of its 2 images are not in .*JPEGImages/none"):
        validation_records(config)


def test_a_list_of_ids_that_is_not_of_the_examples_is_refused(tmp_path):
    config = _as_shards(write_tree(tmp_path / "tree"), tmp_path / "shards")
    path = tmp_path / "shards" / "ood" / "train.ids.txt"
    lines = path.read_text().splitlines()
    for wrong in (lines[1:], lines[::-1]):
        path.write_text("".join(f"{line}\n" for line in wrong))
        with pytest.raises(InputError, match=r"train\.ids\.txt .*not list the ids of its examples; prepare"):
            open_stream(config, "ood")
