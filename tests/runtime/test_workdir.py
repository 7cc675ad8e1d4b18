import pytest

from data_pipelines.errors import InputError
from semiovs_jax.runtime.workdir import check_workdir


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


def test_urls_of_no_object_storage_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--workdir=https://host/run: not a URL of object storage; write gs://"):
        check_workdir("https://host/run")
    assert not list(tmp_path.iterdir())
