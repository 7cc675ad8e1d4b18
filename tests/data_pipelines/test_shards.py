import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from data_pipelines.decode import decode_image, image_size
from data_pipelines.errors import InputError
from data_pipelines.label_cache import open_label_cache
from data_pipelines.sources import UnreadableError, open_stream
from semiovs_jax.contact_sheet import FILE_NAME
from semiovs_jax.label import label_images, labels_complete
from semiovs_jax.sharding import make_mesh
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
    with pytest.raises(InputError, match=r"cannot open the split 'val'.*ood_split names one of train, extra"):
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
        assert label_images(config, ColorOVS(), make_mesh()).labeled == 9
        assert labels_complete(config, ColorOVS())
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
        label_images(label_config(path, tmp_path / "labels"), ColorOVS(), make_mesh())


def test_an_image_that_cannot_be_decoded_is_a_bad_record(images, tmp_path):
    content = encoded(images)
    content["001"] = content["001"][:300]
    path = prepare(tmp_path, {"train": content})
    config = label_config(path, tmp_path / "labels", max_bad_records=1)
    assert label_images(config, ColorOVS(), make_mesh()).bad == ("001",)


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
