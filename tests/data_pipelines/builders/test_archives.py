import hashlib
import io
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_pipelines.builders import archives
from data_pipelines.builders.archives import open_members, opened_members, tar_files
from data_pipelines.builders.downloads import verify
from data_pipelines.errors import InputError
from data_pipelines.sources.records import UnreadableError

FILES = {"a/1.jpg": b"first" * 300, "a/2.png": b"second", "3.txt": b""}


def write_tar(path: Path, files: dict[str, bytes] = FILES, **changes) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in changes.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes] = FILES, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content)
    return path


def test_members_are_the_files_of_an_archive_or_a_folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    for path in (tmp_path / "folder", write_tar(tmp_path / "x.tar"), write_zip(tmp_path / "x.zip")):
        members = open_members(path)
        assert members.names() == sorted(FILES)
        assert {name: members.read(name) for name in members.names()} == FILES


def test_an_archive_is_opened_again_when_it_has_changed(tmp_path):
    path = write_zip(tmp_path / "x.zip")
    assert opened_members(path) is opened_members(path)
    write_zip(path, {"b.jpg": b"more"})
    assert opened_members(path).read("b.jpg") == b"more"


@pytest.mark.parametrize("name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:/x.jpg"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_members_that_lie_outside_are_refused_by_name(tmp_path, write, name):
    path = write(tmp_path / f"x.{write.__name__[-3:]}", {name: b"x"})
    with pytest.raises(InputError, match=rf"member {re.escape(repr(name))} leads out of the folder"):
        open_members(path)


def test_links_and_devices_are_refused_by_name(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with pytest.raises(InputError, match=r"member 'x\.jpg' is a link"):
            open_members(write_tar(tmp_path / "x.tar", {"x.jpg": b""}, type=kind, linkname="/etc/passwd"))
    with pytest.raises(InputError, match=r"member 'x\.jpg' is a link"):
        open_members(write_zip(tmp_path / "x.zip", {"x.jpg": b"/etc/passwd"}, stat.S_IFLNK | 0o777))


@pytest.mark.parametrize("end", [0, 100, 700, 2048, 2060, 2100, 2560, 3100, 3584])
def test_a_tar_that_is_cut_short_yields_what_is_whole(tmp_path, end):
    whole = write_tar(tmp_path / "x.tar")
    whole.write_bytes(whole.read_bytes()[:end])
    files, found = tar_files(whole), {}

    def read_all():
        found.update((file.name, file.read(whole)) for file in files)

    with pytest.raises(UnreadableError, match=r"x\.tar: is damaged"):
        read_all()
    assert found.items() <= FILES.items()
    assert len(found) == sum(end >= needed for needed in (2012, 2566, 3584))


def test_other_files_are_no_archives(tmp_path):
    for name in ("x.tar", "x.zip"):
        (tmp_path / name).write_bytes(b"<html>not found</html>" * 50)
        with pytest.raises(UnreadableError, match="is damaged or not an archive"):
            open_members(tmp_path / name)
        with pytest.raises(UnreadableError, match="No such file"):
            open_members(tmp_path / f"missing_{name}")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_that_may_expand_without_a_limit_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("x.jpg", b"x")
    with pytest.raises(InputError, match=r"member 'x\.jpg' is compressed in another way than deflate; pack"):
        open_members(tmp_path / "x.zip")


def test_members_that_are_too_large_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_BYTES", 1000)
    for path in (write_tar(tmp_path / "x.tar"), write_zip(tmp_path / "x.zip")):
        with pytest.raises(UnreadableError, match=r"member 'a/1\.jpg' claims 1,500 bytes, at most 1,000 are read"):
            open_members(path).read("a/1.jpg")
        assert open_members(path).read("a/2.png") == FILES["a/2.png"]


def test_a_wrong_checksum_says_what_was_expected_and_found(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    verify(path, digest, 7, "https://example.org/x.zip")
    with pytest.raises(
        InputError, match=rf"expected sha256 {'0' * 64} \(9 bytes\), found {digest} \(7 bytes\); remove"
    ):
        verify(path, "0" * 64, 9, "https://example.org/x.zip")
