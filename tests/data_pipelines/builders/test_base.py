import hashlib
import sys

import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from data_pipelines.builders.archives import open_members
from data_pipelines.builders.base import ImageBuilder, image_samples
from data_pipelines.errors import InputError
from data_pipelines.sources import open_stream
from tests.data_pipelines.builders.test_archives import write_zip

FILES = {"train/b.png": b"second", "train/a/1.jpg": b"first", "train/.hidden.jpg": b"x", "train/notes.txt": b"x"}


class Toy(ImageBuilder, skip_registration=True):
    """Images of a zip archive."""

    VERSION = tfds.core.Version("1.0.0")
    archive = None

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(image_samples(open_members(self.archive), "train"))}


def test_examples_are_the_files_with_their_own_bytes_ids_and_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "archive", write_zip(tmp_path / "x.zip", FILES))
    builder = Toy(data_dir=str(tmp_path / "data"))
    builder.download_and_prepare()
    source = open_stream(ConfigDict({"ood_root": builder.data_dir, "ood_split": ""}), "ood")
    assert {source[i].id: source[i].image.read() for i in range(len(source))} == {"a/1": b"first", "b": b"second"}
    assert source.ids() == ["a/1", "b"]
    hashes = [source.feature(i, "sha256").decode() for i in range(2)]
    assert hashes == [hashlib.sha256(content).hexdigest() for content in (b"first", b"second")]
    assert "tensorflow" not in sys.modules


def test_images_must_be_there_and_have_ids_of_their_own(tmp_path):
    with pytest.raises(InputError, match="no image in it"):
        next(image_samples(open_members(write_zip(tmp_path / "x.zip", {"x.txt": b""}))))
    with pytest.raises(InputError, match="x stands for 2 images"):
        next(image_samples(open_members(write_zip(tmp_path / "x.zip", {"x.jpg": b"1", "x.png": b"2"}))))
