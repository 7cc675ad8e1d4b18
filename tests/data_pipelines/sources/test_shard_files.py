"""Shards written without a TFDS builder: whole or not at all, and readable as a prepared dataset."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipelines.errors import InputError
from data_pipelines.sources.shard_files import (
    Shard,
    ids_path,
    read_ids,
    shard_path,
    write_ids,
    write_metadata,
    write_shard,
)

FEATURES = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "id": tfds.features.Text()})


def _examples(*ids: str) -> list[dict]:
    return [{"image": f"bytes of {id_}".encode(), "id": id_} for id_ in ids]


def test_written_shards_are_a_prepared_dataset(tmp_path: Path):
    shards = [
        write_shard(shard_path(tmp_path, "tiny", "train", index, 2), FEATURES, _examples(*ids))
        for index, ids in enumerate([("a", "folder/b"), ("ü c",)])
    ]
    write_metadata(tmp_path, "tiny", FEATURES, {"train": shards}, metadata={"source": "here"})
    builder = tfds.builder_from_directory(tmp_path)
    assert builder.info.metadata == {"source": "here"}
    assert builder.info.splits["train"].shard_lengths == [2, 1]
    assert builder.info.splits["train"].num_bytes == sum(shard.bytes for shard in shards)
    source = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [source[i]["image"] for i in range(3)] == [b"bytes of a", b"bytes of folder/b", "bytes of ü c".encode()]
    assert read_ids(tmp_path, "val") is None


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "folder/b", "ü c"]])
def test_ids_are_read_by_position_and_go_to_other_processes(ids: list[str], tmp_path: Path):
    write_ids(tmp_path, "train", ids)
    found = read_ids(tmp_path, "train")
    assert found is not None
    for same in (found, pickle.loads(pickle.dumps(found))):
        assert (len(same), list(same), [same[i] for i in range(len(ids))], same[:]) == (len(ids), ids, ids, ids)
        assert same[-1:] == ids[-1:]
        with pytest.raises(IndexError):
            same[len(ids)]


def test_a_shard_that_fails_leaves_nothing_behind(tmp_path: Path):
    def failing() -> Iterator[dict]:
        yield from _examples("a")
        raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        write_shard(shard_path(tmp_path, "tiny", "train", 0, 1), FEATURES, failing())
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"the shard is missing"):
        write_metadata(tmp_path, "tiny", FEATURES, {"train": [Shard(("a",), 1)]})


@pytest.mark.parametrize("id_", ["", "a\nb"])
def test_ids_that_no_list_could_hold_are_refused(id_: str, tmp_path: Path):
    with pytest.raises(InputError, match="is empty or contains a line break"):
        write_ids(tmp_path, "train", [id_])
    with pytest.raises(InputError, match="is empty or contains a line break"):
        write_shard(shard_path(tmp_path, "tiny", "train", 0, 1), FEATURES, _examples(id_))


def test_a_damaged_list_of_ids_is_named(tmp_path: Path):
    ids_path(tmp_path, "train").write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"train\.ids\.txt: cannot be read"):
        read_ids(tmp_path, "train")
