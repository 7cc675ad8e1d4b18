import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime.workdir import check_workdir


def test_a_work_directory_is_made(tmp_path):
    folder = check_workdir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_a_work_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir=.*file/run: cannot be written \(.*\); choose a folder"):
        check_workdir(tmp_path / "file" / "run")
    with pytest.raises(InputError, match=r"--workdir=.*file: cannot be written"):
        check_workdir(tmp_path / "file")
