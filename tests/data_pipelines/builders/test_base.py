import hashlib
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.builders import base
from data_pipelines.builders.archives import open_members
from data_pipelines.builders.base import ImageBuilder, id_fault, image_rows, row_units
from data_pipelines.builders.samples import BadFile, Sample
from data_pipelines.errors import InputError
from data_pipelines.sources.shard_files import ids_path
from data_pipelines.sources.shards import open_shards
from tests.data_pipelines.builders.test_archives import write_zip


def encoded(seed: int, kind: str = "JPEG", size: tuple[int, int] = (12, 9)) -> bytes:
    """An encoded image of its own."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


FILES = {
    "train/b.png": encoded(1, "PNG"),
    "train/a/1.jpg": encoded(2),
    "train/a/cut.jpg": encoded(3)[:200],
    "train/.hidden.jpg": b"x",
    "train/.hidden/c.jpg": encoded(4),
    "train/notes.txt": b"x",
}


class Toy(ImageBuilder, skip_registration=True):
    """Images of a zip archive."""

    VERSION = tfds.core.Version("1.0.0")
    archive = Path()

    def units(self, dl_manager):
        return {"train": row_units(self.archive, image_rows(open_members(self.archive), "train"))}


def prepared(builder: ImageBuilder) -> Path:
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_examples_are_the_files_with_their_own_bytes_ids_and_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "UNIT_IMAGES", 2)
    monkeypatch.setattr(Toy, "archive", write_zip(tmp_path / "x.zip", FILES))
    builder = Toy(data_dir=str(tmp_path / "data"))
    folder = prepared(builder)
    source = open_shards(folder)
    expected = {"a/1": FILES["train/a/1.jpg"], "b": FILES["train/b.png"]}
    assert {source[i].id: source[i].image.read() for i in range(len(source))} == expected
    assert list(source.ids()) == ["a/1", "b"]
    assert ids_path(folder, "train").read_bytes() == b"a/1\nb\n"
    examples = tfds.builder_from_directory(folder).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    hashes = [example["sha256"].decode() for example in examples]
    assert hashes == [hashlib.sha256(content).hexdigest() for content in expected.values()]
    assert [example["id"] for example in builder.as_data_source("train")] == [b"a/1", b"b"]
    assert "tensorflow" not in sys.modules
    (bad,) = tfds.builder_from_directory(folder).info.metadata["bad"]
    assert bad["name"] == f"{tmp_path / 'x.zip'}: train/a/cut.jpg"
    assert bad["reason"].startswith("is damaged or not an image")


def test_units_pickle_and_read_when_called(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "UNIT_IMAGES", 2)
    path = write_zip(tmp_path / "x.zip", FILES)
    units = row_units(path, image_rows(open_members(path), "train"))
    assert [unit.name for unit in units] == [f"{path}: images 0-1", f"{path}: images 2-2"]
    found = [list(unit.samples()) for unit in pickle.loads(pickle.dumps(units))]
    assert [[type(sample) for sample in samples] for samples in found] == [[Sample, BadFile], [Sample]]
    path.unlink()
    (left_out,) = units[1].samples()
    assert left_out.name == f"{path}: train/b.png"
    assert "No such file" in left_out.reason


def test_without_a_usable_image_nothing_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "archive", write_zip(tmp_path / "x.zip", {"train/cut.jpg": encoded(3)[:200]}))
    builder = Toy(data_dir=str(tmp_path / "data"))
    with pytest.raises(InputError, match=r"split 'train' has no image that can be used: .*train/cut.jpg: is damaged"):
        builder.download_and_prepare()
    assert not Path(builder.data_dir).exists()


@pytest.mark.parametrize("id_", ["a\nb", "a\r", "", "\udcff"])
def test_ids_that_are_no_line_are_refused(id_):
    assert "rename it" in id_fault(id_)


def test_files_whose_names_cannot_be_ids_are_listed(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a\nb.jpg": encoded(1), "c.jpg": encoded(2)})
    (unit,) = row_units(path, image_rows(open_members(path)))
    left_out, sample = unit.samples()
    assert "line break" in left_out.reason
    assert sample.id == "c"


def test_images_must_be_there_and_have_ids_of_their_own(tmp_path):
    with pytest.raises(InputError, match="no image in it"):
        image_rows(open_members(write_zip(tmp_path / "x.zip", {"x.txt": b""})))
    with pytest.raises(InputError, match="2 images with different suffixes have the id x"):
        image_rows(open_members(write_zip(tmp_path / "x.zip", {"x.jpg": b"1", "x.png": b"2"})))
