"""What --source may be, and what is refused."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import InputError
from data_pipelines.sources.records import UnreadableError
from semiovs_jax.prediction.sources import open_source


def level(value: int, encoding: str = "PNG") -> bytes:
    """An image of 6 x 4 pixels of one level."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (value, value, value)).save(buffer, encoding)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for i, name in enumerate(["a.png", "sub/b.png", "sub/c d.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(level(i, "JPEG" if name.endswith("jpg") else "PNG"))
    (root / "notes.md").write_text("no image")
    return root


def opened(source: object, **options) -> dict[str, int]:
    """The level of each image by id."""
    return {picture.id: int(picture.pixels()[0, 0, 0]) for picture in open_source(str(source), **options)}


def test_an_image(photos: Path):
    (picture,) = open_source(str(photos / "sub" / "c d.jpg"))
    assert (picture.id, picture.size(), picture.pixels().shape) == ("c d", (4, 6), (4, 6, 3))


def test_a_folder_with_all_below(photos: Path):
    assert opened(photos) == {"a": 0, "sub/b": 1, "sub/c d": 2}


def test_a_list_has_paths_relative_to_its_folder(photos: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(level(7))
    lines = ["# two photographs", "", "sub/c d.jpg", '"a.png"', "./a.png", str(elsewhere)]
    (photos / "list.txt").write_text("\n".join(lines))
    outside = str(elsewhere.with_suffix("")).lstrip("/")
    assert opened(photos / "list.txt") == {"sub/c d": 2, "a": 0, outside: 7}


def test_stdin_has_paths_relative_to_the_working_folder(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(photos.parent)
    assert opened("-", stdin=lambda: b"photos/sub/b.png\nphotos/a.png\n") == {"photos/sub/b": 1, "photos/a": 0}


def test_a_file_of_a_list_that_is_missing_is_found_when_it_is_read(photos: Path):
    (photos / "list.txt").write_text("a.png\ngone.png\n")
    first, second = open_source(str(photos / "list.txt"))
    assert first.size() == (4, 6)
    with pytest.raises(UnreadableError, match=r"gone\.png: cannot be read"):
        second.size()


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_an_archive(photos: Path, suffix: str):
    path = photos.parent / f"photos.{suffix}"
    with zipfile.ZipFile(path, "w") if suffix == "zip" else tarfile.open(path, "w") as archive:
        add = archive.write if isinstance(archive, zipfile.ZipFile) else archive.add
        for name in ("a.png", "sub/b.png", "notes.md"):
            add(photos / name, name)
    assert opened(path) == {"a": 0, "sub/b": 1}
    picture = open_source(str(path))[1]
    assert picture.name == f"{path}: sub/b.png"
    assert picture.checksum() == open_source(str(photos / "sub" / "b.png"))[0].checksum()


def test_a_checksum_changes_with_the_image(photos: Path):
    (picture,) = open_source(str(photos / "a.png"))
    before = picture.checksum()
    (photos / "a.png").write_bytes(level(9))
    assert picture.checksum() != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "no such file or folder; name an image"),
        ("https://example.org/a.jpg", None, "a URL cannot be read here"),
        ("empty.txt", b"# nothing\n", "names no image; write one path a line"),
        ("bad.txt", b"caf\xe9.png\n", "line 1 is not UTF-8"),
        ("twice.txt", b"x/a.png\nx/a.jpg\n", "2 images with different suffixes have the id x/a"),
        ("broken.zip", b"no zip", "is damaged or not an archive"),
    ],
)
def test_sources_that_are_refused(name: str, content: bytes | None, message: str, tmp_path: Path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(name if "://" in name else str(tmp_path / name))


def test_an_archive_without_images_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes.md", "no image")
    with pytest.raises(InputError, match="holds no image"):
        open_source(str(tmp_path / "notes.zip"))


def test_a_video_without_ffmpeg_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'semiovs-jax\[video\]'"):
        open_source(str(tmp_path / "film.mp4"))


def test_the_frames_of_a_video(tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg", reason="needs pip install 'semiovs-jax[video]'")
    import imageio.v3 as iio

    levels = np.arange(100, dtype=np.uint8) * 2 + 20
    film = np.broadcast_to(levels[:, None, None, None], (100, 48, 64, 3))
    iio.imwrite(tmp_path / "film.mp4", film, plugin="FFMPEG", fps=10)
    frames = open_source(str(tmp_path / "film.mp4"))
    assert [frame.id for frame in frames[:2]] == ["000000", "000001"]
    assert len(frames) == 100
    for number in [3, 2, 99, 0, 1]:  # threads ask in nearly any order
        assert frames[number].size() == (48, 64)
        assert abs(int(frames[number].pixels()[20, 20, 0]) - int(levels[number])) <= 3
    (tmp_path / "other.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="cannot be read as a video"):
        open_source(str(tmp_path / "other.mp4"))
