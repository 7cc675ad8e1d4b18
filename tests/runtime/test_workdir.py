import os
import socket
import subprocess
import sys

import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime.workdir import check_shared, check_workdir

WORKER = """
import sys
process, port, *folders = sys.argv[1:]
import jax
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
from pathlib import Path
from data_pipelines.errors import InputError
from semiovs_jax.runtime import workdir
workdir._SEEN_WITHIN = 0.5
names = ("--workdir", "config.ovs.labels_dir")
for both in (folders[:2], folders[2:]):
    try:
        workdir.check_shared(dict(zip(names, map(Path, both))))
        print("RESULT shared", flush=True)
    except InputError as error:
        print("RESULT", error, flush=True)
"""


def test_a_work_directory_is_made(tmp_path, monkeypatch):
    folder = check_workdir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_workdir("~/c") == tmp_path / "c"


def test_a_work_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir=.*file/run: cannot be written \(.*\); choose a folder"):
        check_workdir(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"--workdir=.*file: cannot be written"):
        check_workdir(tmp_path / "file")


@pytest.mark.parametrize("name", ["run[lr=0.1]", "run]", "run\\1"])
def test_a_path_that_no_checkpoint_can_be_restored_from_is_refused(name, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot be restored .*choose a path without \[ \] \\"):
        check_workdir(tmp_path / name)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(InputError, match=r"--workdir=run: checkpoints below a path with"):
        check_workdir("run")


@pytest.mark.parametrize("name", ["run lr=0,1", "läuft", "# ? % { } : ' \" *"])
def test_other_names_are_accepted(name, tmp_path):
    assert check_workdir(tmp_path / name).is_dir()


def test_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--workdir=gs://bucket/run: URLs are not supported yet"):
        check_workdir("gs://bucket/run")
    assert not list(tmp_path.iterdir())


def test_one_process_shares_with_nobody(tmp_path):
    check_shared({"--workdir": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


def test_hosts_that_do_not_share_their_storage_are_told_so_at_the_start(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared, own = [tmp_path / "run", tmp_path / "labels"], tmp_path / "own"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, index, port, *shared, own / index, tmp_path / "labels"],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in "01"
    ]
    try:
        printed = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, lines in zip("01", printed, strict=True):
        accepted, refused = (line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT"))
        assert accepted == "shared"
        assert refused.startswith(
            f"--workdir={own / index}: process 0 wrote a file there that process(es) 1 cannot see"
        )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "the files are removed"
