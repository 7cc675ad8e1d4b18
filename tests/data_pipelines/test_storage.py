"""Paths of object storage, on servers of this machine."""

import pickle
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from data_pipelines.files import as_path, is_remote, local_file, objects_below, replace_file, url_fault, whole_file

storage = pytest.importorskip("data_pipelines.storage")


@pytest.fixture
def folder(bucket: str, request: pytest.FixtureRequest):
    return as_path(f"{bucket}/{request.node.originalname}", "--x")


def test_an_object_path_has_the_methods_of_pathlib(folder):
    assert not folder.exists()
    assert not list(folder.iterdir())
    replace_file(folder / "a" / "b.json", "ä")
    replace_file(folder / "a" / "c" / "d.png", b"1")
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "a" / "b.json").is_file()
    assert [path.name for path in (folder / "a").iterdir()] == ["b.json", "c"]
    assert list(folder.rglob("*.png")) == [folder / "a" / "c" / "d.png"]
    assert list(folder.glob("a/[ab]*")) == [folder / "a" / "b.json"]
    assert objects_below(folder) == {"a/b.json", "a/c/d.png"}
    assert (folder / "a" / "b.json").read_text() == "ä"
    with (folder / "a" / "b.json").open("rb") as file:
        assert file.read() == "ä".encode()
    assert pickle.loads(pickle.dumps(folder)) == folder == folder.absolute()
    assert as_path(Path(str(folder)), "--x") == folder  # which pathlib writes with one slash
    assert is_remote(Path(str(folder)))
    (folder / "a" / "c").rename(folder / "moved")
    assert objects_below(folder) == {"a/b.json", "moved/d.png"}
    (folder / "a" / "b.json").unlink()
    (folder / "a" / "b.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"No such file.*b\.json"):
        (folder / "a" / "b.json").read_bytes()
    folder.rmtree()
    assert not folder.exists()


def test_a_file_that_ends_with_an_error_is_not_uploaded(folder):
    def fail():
        with whole_file(folder / "a") as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not folder.exists()


def test_a_local_copy_follows_the_object(folder):
    replace_file(folder / "a.txt", "one")
    first = local_file(folder / "a.txt")
    assert local_file(folder / "a.txt") == first
    replace_file(folder / "a.txt", "other")
    assert local_file(folder / "a.txt").read_text() == "other"
    assert first.read_text() == "one"


def test_a_bucket_that_is_missing_is_named(bucket):
    with pytest.raises(InputError, match=r"://nobody-s-bucket/a: cannot be written \(.*\); restore access or"):
        replace_file(as_path(bucket.replace("bucket", "nobody-s-bucket") + "/a", "--x"), "a")


class Failing:
    """A client that fails a number of times."""

    def __init__(self, error: Exception, times: int):
        self.error, self.times = error, times

    def cat_file(self, path: str) -> bytes:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return b"there"


class HttpError(Exception):
    code = 503


@pytest.mark.parametrize(
    ("error", "asked"),
    [(ConnectionError("refused"), 7), (HttpError("unavailable"), 7), (PermissionError("no"), 1), (ValueError("?"), 1)],
)
def test_a_server_that_fails_is_asked_again(error, asked, monkeypatch):
    pytest.importorskip("gcsfs")
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    path = storage.ObjectPath("gs://bucket/a")
    client = Failing(error, 1000)
    monkeypatch.setattr(storage.ObjectPath, "_system", client)
    with pytest.raises(OSError, match=str(error).replace("?", r"\?")):
        path.read_bytes()
    assert 1000 - client.times == asked
    assert not waits or 63 <= sum(waits) <= 95
    if asked > 1:
        client.times = 3
        assert path.read_bytes() == b"there"


def test_other_urls_and_data_on_object_storage_are_refused(monkeypatch):
    for url in ("https://host/a", "gs://", "ftp://host/a"):
        with pytest.raises(InputError, match=rf"--x={url}: not a URL of object storage"):
            as_path(url, "--x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gcsfs is not installed; run pip install 'semiovs-jax\[gcs\]'"):
        as_path("gs://bucket/a", "--x")
    assert "mount-s3 BUCKET" in url_fault("s3://bucket/data", "config.data.root")
    assert "gcsfuse BUCKET" in url_fault("gs://bucket/data", "config.data.root")
    assert url_fault("data", "config.data.root") is None
