import subprocess
import sys

import pytest

from data_pipelines.prepare import __main__ as prepare
from tests.data_pipelines.builders.test_base import encoded


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
    for state in ("prepared", "there already, made from the same"):
        run(monkeypatch, *flags)
        lines = capsys.readouterr().out.splitlines()
        start = next(index for index, line in enumerate(lines) if line.startswith(f"{folder}: "))
        summary, first, *_, last = lines[start:]
        assert summary.startswith(f"{folder}: {state}: images: train 3; ")
        assert summary.endswith(" bytes; bad files: 23")
        assert first.startswith(f"  {source / 'bad00.jpg'}: is damaged or not an image")
        assert last == f"  and 3 more: 'bad' in {folder / 'metadata.json'}"
        assert len(lines[start:]) == 22


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=image_folder"], "name with --source what it is to be made from"),
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
    assert f"{tmp_path / 'out'}" in capsys.readouterr().err


def test_the_command_ends_without_a_traceback(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    command = [sys.executable, "-m", "data_pipelines.prepare", "--dataset=image_folder"]
    command += [f"--source={tmp_path / 'x.zip'}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "x.zip: is damaged or no archive" in done.stderr
    assert "Traceback" not in done.stderr
