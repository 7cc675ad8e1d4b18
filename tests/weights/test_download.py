"""Downloads from a server on this machine."""

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_pipelines.errors import InputError
from semiovs_jax.weights.download import download

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = "https://example.org/page"


class Files(ThreadingHTTPServer):
    """A server of a folder; like object storage, it has strong ETags and sends parts of files.

    Attributes:
      asked: the Range of each request.
      broken_after: bytes after which it ends each connection; None for never.
      sends_parts: whether it sends parts of files.
      content_type: of all files.
    """

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.folder = folder
        self.asked: list[str | None] = []
        self.broken_after: int | None = None
        self.sends_parts = True
        self.content_type = "application/octet-stream"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Files

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        self.server.asked.append(self.headers["Range"])
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if self.server.sends_parts and self.headers["Range"] and self.headers["If-Range"] == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = len(content) if self.server.broken_after is None else start + self.server.broken_after
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Files]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "w.pth").write_bytes(CONTENT)
    with Files(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "w.pth"


def interrupt(server: Files, path: Path) -> None:
    """Leaves a part of the file."""
    server.broken_after = 300_000
    with pytest.raises(InputError, match="what has arrived is kept") as error:
        download(f"{server.url}/w.pth", path, None, page=PAGE)
    assert PAGE in str(error.value)
    assert not path.exists()
    assert 0 < path.with_name("w.pth.part").stat().st_size <= 300_000
    server.broken_after = None


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], None])
def test_a_whole_file_alone_is_left(server: Files, path: Path, sha256: str | None):
    assert download(f"{server.url}/w.pth", path, sha256, page=PAGE) == SHA256
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["w.pth"]
    assert download(f"{server.url}/w.pth", path, sha256, page=PAGE) == SHA256
    assert len(server.asked) == 1


def test_an_interrupted_download_continues(server: Files, path: Path):
    interrupt(server, path)
    kept = path.with_name("w.pth.part").stat().st_size
    assert download(f"{server.url}/w.pth", path, SHA256, page=PAGE) == SHA256
    assert server.asked == [None, f"bytes={kept}-"]
    assert [file.name for file in path.parent.iterdir()] == ["w.pth"]


def test_it_starts_again_where_the_server_sends_no_parts(server: Files, path: Path):
    interrupt(server, path)
    server.sends_parts = False
    assert download(f"{server.url}/w.pth", path, SHA256, page=PAGE) == SHA256


def test_it_starts_again_where_the_file_was_replaced(server: Files, path: Path):
    interrupt(server, path)
    (server.folder / "w.pth").write_bytes(CONTENT[::-1])
    assert download(f"{server.url}/w.pth", path, None, page=PAGE) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_download_that_was_killed_before_it_was_renamed(server: Files, path: Path):
    interrupt(server, path)
    path.with_name("w.pth.part").write_bytes(CONTENT)
    assert download(f"{server.url}/w.pth", path, SHA256, page=PAGE) == SHA256


@pytest.mark.parametrize("wrong", ["0" * 64, "0" * 8])
def test_a_file_of_another_digest_is_refused(server: Files, path: Path, wrong: str):
    with pytest.raises(InputError, match=f"sha256 is {SHA256}, expected .*{wrong}; it is deleted"):
        download(f"{server.url}/w.pth", path, wrong, page=PAGE)
    assert list(path.parent.iterdir()) == []


def test_a_file_of_another_digest_that_is_there_is_left(server: Files, path: Path):
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"w\.pth: sha256 is .*; remove it, or choose another folder"):
        download(f"{server.url}/w.pth", path, SHA256, page=PAGE)
    assert path.read_bytes() == b"mine"
    assert server.asked == []


def test_a_web_page_instead_of_the_file(server: Files, path: Path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(InputError, match=f"sent a web page, not the file; get the file with a browser .see {PAGE}"):
        download(f"{server.url}/w.pth", path, None, page=PAGE)
    assert list(path.parent.iterdir()) == []


def test_two_processes_do_not_write_one_file(server: Files, path: Path):
    path.parent.mkdir()
    with path.with_name("w.pth.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"w\.pth\.part: another process downloads this file"):
            download(f"{server.url}/w.pth", path, None, page=PAGE)
    assert path.with_name("w.pth.part").exists()
    assert server.asked == []


def test_a_file_that_the_server_does_not_have(server: Files, path: Path):
    with pytest.raises(InputError, match="404"):
        download(f"{server.url}/other.pth", path, None, page=PAGE)
    assert list(path.parent.iterdir()) == []


def test_a_file_of_a_folder_is_copied(server: Files, path: Path):
    assert download(str(server.folder / "w.pth"), path, SHA256, page=PAGE) == SHA256
    assert path.read_bytes() == CONTENT
    with pytest.raises(InputError, match="No such file"):
        download(str(server.folder / "other.pth"), path.with_name("other.pth"), None, page=PAGE)
