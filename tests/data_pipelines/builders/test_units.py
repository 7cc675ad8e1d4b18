"""Units become shards one by one: resumable, counted, and never mixed with what was asked for before."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.builders import units as unit_shards
from data_pipelines.builders.leakage import EvaluationImages, perceptual_hash
from data_pipelines.builders.samples import Content, Unit
from data_pipelines.builders.units import Dropped, Preparation, Report, begin, finish, prepare_part
from data_pipelines.errors import InputError
from data_pipelines.sources.shards import open_shards
from tests.data_pipelines.builders.unit_builder import contents, image, preparation, unit

UNITS = {"train": [unit("first", 0, 3), unit("none", 0, bad=("x.jpg", "y.jpg")), unit("last", 3, 5)]}


def evaluation_of(*seeds: int, distance: int = 10) -> EvaluationImages:
    images = [Content(str(seed), image(seed)) for seed in seeds]
    hashes = np.array([perceptual_hash(found) for found in images], np.uint64)
    return EvaluationImages(tuple(f"val/{found.name}" for found in images), (b"",) * len(images), hashes, distance)


def prepare(job: Preparation, units: dict[str, list[Unit]]) -> Report:
    for part in reversed(begin(job, units)):
        prepare_part(job, part)
    return finish(job, units)


def interrupted(write: Callable[..., None]) -> Callable[..., None]:
    def write_and_stop(*arguments, **options):
        write(*arguments, **options)
        raise KeyboardInterrupt

    return write_and_stop


def test_units_are_the_shards_of_a_prepared_dataset(tmp_path):
    job = preparation(tmp_path)
    report = prepare(job, UNITS)
    assert report.images == {"train": 5}
    assert [tuple(file) for file in report.bad] == [("x.jpg", "is broken"), ("y.jpg", "is broken")]
    info = tfds.builder_from_directory(job.folder).info
    assert info.splits["train"].shard_lengths == [3, 0, 2]
    assert info.metadata["source"] == {"source": "here"}
    assert [file["name"] for file in info.metadata["bad"]] == ["x.jpg", "y.jpg"]
    source = open_shards(job.folder)
    assert [source[i].image.read() for i in range(5)] == [image(seed) for seed in range(5)]
    assert list(source.ids()) == list("01234")
    assert json.loads((job.folder / "report.json").read_text())["bad"][0] == {"name": "x.jpg", "reason": "is broken"}
    assert not (job.folder / "units").exists()


def test_what_is_finished_is_passed_over_and_what_is_damaged_written_again(tmp_path, monkeypatch):
    whole = preparation(tmp_path / "whole")
    expected_report = prepare(whole, UNITS)
    job = preparation(tmp_path / "killed")
    first, empty, last = begin(job, UNITS)
    prepare_part(job, first)
    prepare_part(job, last)
    (job.folder / "preparation.json.of-a-writer-that-was-killed.part").write_bytes(b"x")
    shards = sorted(job.folder.glob("*.array_record-*"))
    stamps = [path.stat().st_mtime_ns for path in shards]
    shards[1].write_bytes(b"cut")
    assert begin(job, UNITS) == [empty, last]
    with monkeypatch.context() as patch:
        patch.setattr(unit_shards, "write_metadata", interrupted(unit_shards.write_metadata))
        with pytest.raises(KeyboardInterrupt):
            prepare(job, UNITS)
    assert prepare(job, UNITS) == expected_report
    assert shards[0].stat().st_mtime_ns == stamps[0]
    assert contents(job.folder) == contents(whole.folder)
    assert begin(job, UNITS) == []
    assert finish(job, UNITS) == expected_report
    assert contents(job.folder) == contents(whole.folder)


def test_faults_are_gathered_and_keep_no_other_unit_from_being_written(tmp_path):
    fault = tmp_path / "fault"
    fault.write_text("input")
    units = {"train": [unit("a", 0, 2, fault=fault), unit("b", 2, 4), unit("c", 4, 6, fault=fault)]}
    job = preparation(tmp_path / "out")
    with pytest.raises(InputError, match=r"2 of 3 unit\(s\) are not prepared: .*fault: do mend it; .*do mend it"):
        prepare(job, units)
    assert [path.name for path in job.folder.glob("*.array_record*")] == ["toy-train.array_record-00001-of-00003"]
    fault.unlink()
    assert [part.unit.name for part in begin(job, units)] == ["a", "c"]
    with pytest.raises(InputError, match="do mend it"):
        finish(job, units)
    assert prepare(job, units).images == {"train": 6}


@pytest.mark.parametrize(
    ("source", "units", "evaluation", "message"),
    [
        ("there", UNITS, (0,), r"source\.source was 'here', now 'there'"),
        ("here", {"train": UNITS["train"][:2]}, (0,), r"units\.train had 3 units, now 2"),
        ("here", {"train": [*UNITS["train"][:2], unit("new", 3, 5)]}, (0,), r"units\.train\[2\] was 'last', now 'new'"),
        ("here", UNITS, (0, 1), r"evaluation\.images was 1, now 2"),
        ("here", UNITS, (1,), r"evaluation\.sha256 was '\w+', now '\w+'"),
        ("here", UNITS, (), r"evaluation was {.*}, now None"),
    ],
)
def test_other_units_or_settings_are_refused(source, units, evaluation, message, tmp_path):
    prepare_part(job := preparation(tmp_path, evaluation=evaluation_of(0)), begin(job, UNITS)[0])
    before = contents(tmp_path)
    other = preparation(tmp_path, source, evaluation_of(*evaluation) if evaluation else None)
    with pytest.raises(InputError, match=message):
        begin(other, units)
    prepare(job, UNITS)
    with pytest.raises(InputError, match=message):
        begin(other, units)
    assert set(before) - set(contents(tmp_path)) == {"toy/1.0.0/units/train-00000.json"}


def test_a_folder_of_other_files_is_refused(tmp_path):
    job = preparation(tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files but no preparation\.json; name another folder"):
        begin(job, UNITS)


def test_duplicates_of_evaluation_images_are_dropped_and_named(tmp_path):
    job = preparation(tmp_path, evaluation=evaluation_of(1, 4))
    units = {"train": [*UNITS["train"], unit("again", 0, 3)]}
    with pytest.raises(InputError, match=r"2 id\(s\) of the split 'train' are repeated: 0 \(2 images\)"):
        prepare(job, units)
    job = preparation(tmp_path / "other", evaluation=evaluation_of(1, 4))
    report = prepare(job, UNITS)
    assert report.dropped == [Dropped("first: 1", "val/1", "near", 0), Dropped("last: 4", "val/4", "near", 0)]
    assert (job.folder / "train.ids.txt").read_text().split() == ["0", "2", "3"]
    summary = report.summary(limit=1)
    assert "2 duplicates of 2 evaluation images dropped (0 exact, 2 near)" in summary
    assert "first: 1 is nearly val/1 (0 of 64 bits differ)" in summary
    assert "and 1 more: see report.json" in summary


def test_images_that_are_there_twice_are_counted(tmp_path):
    once, twice = unit("once", 0, 3), unit("twice", 0, 2)
    assert prepare(preparation(tmp_path), {"train": [once], "extra": [twice]}).repeated == 2


def test_a_split_without_images_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"'train' has no image that can be used: x\.jpg: is broken"):
        prepare(preparation(tmp_path), {"train": [unit("none", 0, bad=("x.jpg",))]})
