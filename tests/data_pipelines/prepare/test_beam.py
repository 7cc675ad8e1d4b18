"""Datasets prepared with Apache Beam, on its runner for one machine."""

import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.prepare import beam
from data_pipelines.prepare.beam import prepare_on_beam
from data_pipelines.shapes.benchmark import ShapesSpec, write_shapes
from data_pipelines.sources.shards import open_shards
from tests.data_pipelines.builders.unit_builder import contents, preparation, run_killed, unit

TARS, IMAGES = 6, 10


def scaled(path: Path) -> bytes:
    stream = io.BytesIO()
    with Image.open(path) as image:
        image.resize((image.width // 2, image.height // 2)).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def write_tar(path: Path, images: Mapping[str, bytes]) -> None:
    """A shard as img2dataset writes it: of each image its file, its caption and what is known of it."""
    with tarfile.open(path, "w") as tar:
        for key, content in images.items():
            known = json.dumps({"key": key, "status": "success"}).encode()
            for suffix, data in ((".jpg", content), (".txt", b"a caption"), (".json", known)):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> Path:
    """The OOD images of shapes in tars below `tars`, among them copies of validation images and a broken file."""
    root = tmp_path_factory.mktemp("crawl")
    write_shapes(root / "shapes", ShapesSpec(labeled=1, unlabeled=1, val=8, ood=TARS * IMAGES))
    val = sorted((root / "shapes/JPEGImages").glob("val_*.jpg"))
    images = [path.read_bytes() for path in sorted((root / "shapes/ood/JPEGImages").glob("*.jpg"))]
    images[7], images[31], images[33] = val[2].read_bytes(), scaled(val[3]), val[4].read_bytes()
    images[59] = scaled(val[5])
    images[20] = images[20][:500]
    (root / "tars").mkdir()
    for index in range(TARS):
        part = {f"{i:09d}": images[i] for i in range(index * IMAGES, (index + 1) * IMAGES)}
        write_tar(root / f"tars/{index:05d}.tar", part)
    return root


def flags(crawl: Path, out: Path, *more: str) -> list[str]:
    return [
        "--dataset=webdataset_ood",
        f"--source={crawl / 'tars'}",
        f"--out={out}",
        f"--evaluation_root={crawl / 'shapes'}",
        "--evaluation_split=splits/val.txt",
        *more,
    ]


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["beam", *arguments])
    beam.main()


def test_a_killed_preparation_of_shapes_goes_on_without_its_evaluation_images(crawl, tmp_path, monkeypatch, capsys):
    run_killed(beam.__name__, 2 * IMAGES + 5, flags(crawl, tmp_path / "killed"))
    folder = tmp_path / "killed/webdataset_ood/1.0.0"
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record-?????-of-?????")}
    assert len(finished) == len(list((folder / "units").glob("*.json"))) == 2
    assert not (folder / "dataset_info.json").exists()
    assert list(folder.glob("*.part"))

    run(monkeypatch, *flags(crawl, tmp_path / "killed"))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    summary, progress = capsys.readouterr()
    assert f"{folder}: 4 of 6 units to prepare" in progress
    tars = crawl / "tars"
    for line in (
        "55 images in the split train",
        "1 bad files left out",
        f"{tars}/00002.tar: 000000020.jpg: is damaged or not an image",
        "4 duplicates of 8 evaluation images dropped (2 exact, 2 near)",
        f"{tars}/00000.tar: 00000/000000007 is JPEGImages/val_000002\n",
        f"{tars}/00003.tar: 00003/000000031 is nearly JPEGImages/val_000003 (",
        f"{tars}/00003.tar: 00003/000000033 is JPEGImages/val_000004\n",
        f"{tars}/00005.tar: 00005/000000059 is nearly JPEGImages/val_000005 (",
    ):
        assert line in summary

    run(monkeypatch, *flags(crawl, tmp_path / "undisturbed"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    source = open_shards(folder)
    kept = [i for i in range(TARS * IMAGES) if i not in (7, 20, 31, 33, 59)]
    assert list(source.ids()) == [f"{i // IMAGES:05d}/{i:09d}" for i in kept]
    originals = [crawl / f"shapes/ood/JPEGImages/ood_{i:06d}.jpg" for i in kept]
    assert [source[i].image.read() for i in range(len(source))] == [path.read_bytes() for path in originals]

    capsys.readouterr()
    run(monkeypatch, *flags(crawl, tmp_path / "killed"))
    assert capsys.readouterr().out == summary
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *flags(crawl, tmp_path / "killed", "--leakage_distance=4"))
    assert "evaluation.distance was 10, now 4; use the same again" in capsys.readouterr().err


def test_a_unit_that_crashes_ends_the_run_and_only_what_is_missing_is_done_again(tmp_path):
    fault = tmp_path / "fault"
    fault.write_text("crash")
    units = {"train": [unit("a", 0, 2), unit("b", 2, 4, fault=fault), unit("c", 4, 6)], "extra": [unit("d", 0, 1)]}
    job = preparation(tmp_path / "out")
    with pytest.raises(Exception, match="fault: do mend it"):
        prepare_on_beam(job, units)
    assert not (job.folder / "dataset_info.json").exists()
    fault.unlink()
    report = prepare_on_beam(job, units)
    assert report.images == {"train": 6, "extra": 1}
    prepare_on_beam(undisturbed := preparation(tmp_path / "undisturbed"), units)
    assert contents(job.folder) == contents(undisturbed.folder)


def test_a_fault_of_a_unit_is_told_as_it_is(tmp_path):
    fault = tmp_path / "fault"
    fault.write_text("input")
    units = {"train": [unit("a", 0, 2, fault=fault), unit("b", 2, 4)]}
    with pytest.raises(InputError, match=r"1 of 2 unit\(s\) are not prepared: .*do mend it"):
        prepare_on_beam(preparation(tmp_path / "out"), units)


def test_what_beam_does_not_know_is_refused(crawl, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *flags(crawl, tmp_path, "--beam_runner=Imaginary", "--beam_options=--region=r"))
    assert "error: --beam_runner=Imaginary --beam_options=--region=r: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"pip install 'semiovs-jax\[beam\]'"):
        prepare_on_beam(preparation(tmp_path), {"train": [unit("a", 0, 2)]})
