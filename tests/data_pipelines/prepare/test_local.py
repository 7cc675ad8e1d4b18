import functools
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.prepare import __main__ as prepare
from data_pipelines.sources.shards import open_shards
from tests.data_pipelines.builders.test_archives import write_tar
from tests.data_pipelines.builders.test_base import encoded
from tests.data_pipelines.builders.unit_builder import contents, run_killed


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    prepare.main()


def test_the_command_counts_and_lists(tmp_path, monkeypatch, capsys):
    source = tmp_path / "photos"
    source.mkdir()
    for n in range(3):
        (source / f"{n}.jpg").write_bytes(encoded(n))
    for n in range(22):
        (source / f"bad{n:02}.jpg").write_bytes(encoded(n)[:100])
    (source / "not\udcff.jpg").write_bytes(encoded(4))
    flags = ["--dataset=image_folder", f"--source={source}", f"--out={tmp_path / 'out'}"]
    folder = tmp_path / "out/image_folder/1.0.0"
    for state in ("prepared", "already there, made from the same source"):
        run(monkeypatch, *flags)
        lines = capsys.readouterr().out.splitlines()
        start = next(index for index, line in enumerate(lines) if line.startswith(f"{folder}: "))
        title, images, repeated, bad, first, *_, more, last = [line.strip() for line in lines[start:]]
        assert title == f"{folder}: {state}:"
        assert [images, repeated] == ["3 images in the split train", "0 of them repeat the bytes of another"]
        assert bad == "23 bad files left out"
        assert first.startswith(f"{source / 'bad00.jpg'}: is damaged or not an image")
        assert more == "and 3 more: see metadata.json"
        assert last == "no search for duplicates of evaluation images"
        assert len(lines[start:]) == 26
    listed = [file["name"] for file in json.loads((folder / "metadata.json").read_text())["bad"]]
    assert [Path(name).name for name in listed] == [*(f"bad{n:02}.jpg" for n in range(22)), "not\udcff.jpg"]


def write_crawl(folder: Path) -> list[str]:
    """Writes 3 tars of 5 images, and one without, below a folder; returns the flags of the command but --out."""
    folder.mkdir()
    for tar in range(3):
        write_tar(
            folder / f"{tar}.tar", {f"{n:09}.jpg": encoded(n, size=(99, 99)) for n in range(5 * tar, 5 * tar + 5)}
        )
    write_tar(folder / "3.tar", {"0.txt": b"a caption"})
    return ["--dataset=webdataset_ood", f"--source={folder}"]


def test_a_killed_command_goes_on_to_the_same_bytes(tmp_path, monkeypatch, capsys):
    flags = write_crawl(tmp_path / "crawl")
    folder = tmp_path / "killed/webdataset_ood/1.0.0"
    run_killed(prepare.__name__, 12, [*flags, f"--out={tmp_path / 'killed'}"])
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record-?????-of-?????")}
    assert len(finished) == len(list((folder / "units").glob("*.json"))) == 2
    assert not (folder / "dataset_info.json").exists()
    assert list(folder.glob("*.part"))
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, flags[0], f"--source={tmp_path / 'crawl/0.tar'}", f"--out={tmp_path / 'killed'}")
    assert "was begun with other units or settings: source.source was" in capsys.readouterr().err

    for out in ("killed", "undisturbed"):
        run(monkeypatch, *flags, f"--out={tmp_path / out}")
        assert "15 images in the split train\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    (folder / "units").mkdir()  # as of a command that was killed at the end
    run(monkeypatch, *flags, f"--out={tmp_path / 'killed'}")
    assert f"{folder}: already there, made from the same source:\n" in capsys.readouterr().out
    assert not (folder / "units").exists()
    source = open_shards(folder)
    assert [source[i].image.read() for i in range(15)] == [encoded(n, size=(99, 99)) for n in range(15)]


def test_a_disk_that_is_full_is_named_and_the_command_goes_on_when_there_is_room(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", prepare.__name__, *write_crawl(tmp_path / "crawl"), f"--out={out}"]
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=full)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "4 of 4 unit(s) are not prepared: " in line
    assert "array_record-00000-of-00004: cannot be written (write() failed: File too large" in line
    assert "make room or choose a folder you may write to" in line
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.part"))
    subprocess.run(command, check=True)
    assert len(open_shards(out / "webdataset_ood/1.0.0")) == 15


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=image_folder"], "set --source to the files of the dataset"),
        (["--dataset=coco_ood", "--source=x"], "leave out --source"),
        (["--dataset=image_folder", "--source=none"], "none: no such folder or archive"),
        (["--dataset=webdataset_ood", "--source=none"], "none: no tar file"),
        (["--dataset=coco_ood", "--manual_dir=none"], "--manual_dir=none: no such folder"),
    ],
)
def test_the_command_says_what_to_mend(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *flags, "--out=out")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--dataset=image_folder", f"--source={tmp_path}", f"--out={tmp_path / 'out'}")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path / 'out/downloads'}: cannot be read or written (Not a directory); name an --out" in line


def test_the_command_ends_without_a_traceback(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=image_folder"]
    command += [f"--source={tmp_path / 'x.zip'}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "x.zip: is damaged or not an archive" in done.stderr
    assert "Traceback" not in done.stderr
