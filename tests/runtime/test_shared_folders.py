import os
import subprocess
import sys

from semiovs_jax.runtime.shared_folders import check_shared
from tests.free_port import free_port

WORKER = """
import sys
process, port, *folders = sys.argv[1:]
import jax
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
from pathlib import Path
from data_pipelines.errors import InputError
from semiovs_jax.runtime import shared_folders
shared_folders._SEEN_WITHIN = 0.5
names = ("--workdir", "config.ovs.labels_dir")
for both in (folders[:2], folders[2:]):
    try:
        shared_folders.check_shared(dict(zip(names, map(Path, both))))
        print("RESULT shared", flush=True)
    except InputError as error:
        print("RESULT", error, flush=True)
"""


def test_one_process_shares_with_nobody(tmp_path):
    check_shared({"--workdir": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


def test_hosts_that_do_not_share_their_storage_are_told_so_at_the_start(tmp_path):
    port = str(free_port())
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
