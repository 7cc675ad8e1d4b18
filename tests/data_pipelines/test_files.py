import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from data_pipelines.files import expand, local_path, remove_abandoned_parts, replace_file, whole_file


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "file.txt"
    replace_file(path, "first")
    replace_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/below: cannot be written \(.*\); make room or name another folder"):
        replace_file(tmp_path / "file" / "below", "", remedy="name another folder")


def test_only_parts_that_nobody_writes_any_more_are_removed(tmp_path):
    whole, old = tmp_path / "b.png", tmp_path / "below" / "c.png.0123.part"
    old.parent.mkdir()
    for path in (whole, old):
        path.touch()
        os.utime(path, (0, 0))
    with whole_file(tmp_path / "a.png") as young:
        young.touch()
        remove_abandoned_parts(tmp_path)
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == {young, whole}


WRITER = """
import os, signal, sys
from pathlib import Path
from data_pipelines.files import whole_file
with whole_file(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_part_of_a_writer_that_was_killed_is_removed_at_once(tmp_path):
    process = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "a.png")])
    assert process.returncode == -signal.SIGKILL
    (part,) = tmp_path.iterdir()
    later = time.time() + 1e6  # the clock was set back since
    os.utime(part, (later, later))
    remove_abandoned_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_part_goes_with_the_error_that_ended_it(tmp_path):
    def fail():
        with whole_file(tmp_path / "a") as part:
            part.touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_home_folders_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/a") == local_path("~/a", "--x") == tmp_path / "a"
    with pytest.raises(InputError, match=r"~nobody\.known/a: there is no home folder of that name"):
        expand("~nobody.known/a")


@pytest.mark.parametrize("url", ["gs://bucket/a", "s3://bucket", "file:///a", Path("gs://bucket/a")])
def test_urls_are_no_local_paths(url):
    with pytest.raises(InputError, match=r"--x=.*: a URL cannot be read here; (name a folder|mount the bucket \()"):
        local_path(url, "--x")
