"""Files made to harm are refused, and cost little memory."""

import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.data_pipelines.tree import data_config, image, jpeg_of_size, write_tree

_MOST_MEMORY = 1 << 30  # bytes
_BOMB = 10 << 30  # bytes of zeros


def write_zip_bomb(path: Path, claimed: int) -> None:
    """A zip of ten megabytes with one "image" of ten gigabytes of zeros, which claims to have another size."""
    stream = zlib.compressobj(wbits=-15)
    piece = stream.compress(bytes(1 << 24)) + stream.flush(zlib.Z_FULL_FLUSH)
    raw = piece * (_BOMB >> 24) + stream.flush()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bomb.jpg", raw)
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\1\2")
    for start, method, size in ((0, 8, 22), (central, 10, 24)):
        struct.pack_into("<H", content, start + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", content, start + size, claimed)
    path.write_bytes(content)


def write_tar(path: Path, name: str, kind: bytes, target: str) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        archive.addfile(member)


def write_png_of_size(path: Path, height: int, width: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(image(7)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)


def write_files(folder: Path) -> None:
    write_tree(folder)
    (folder / "ood" / "000.jpg").write_bytes(jpeg_of_size(60_000, 60_000))
    write_png_of_size(folder / "ood" / "huge.png", 60_000, 60_000)
    write_zip_bomb(folder / "honest.zip", (1 << 32) - 2)
    write_zip_bomb(folder / "lying.zip", 1000)
    write_tar(folder / "link.tar", "x.jpg", tarfile.SYMTYPE, "/etc/passwd")
    write_tar(folder / "hard.tar", "x.jpg", tarfile.LNKTYPE, "../../secret")
    write_tar(folder / "absolute.tar", "/etc/x.jpg", tarfile.REGTYPE, "")
    write_tar(folder / "above.tar", "a/../../x.jpg", tarfile.REGTYPE, "")


def main(folder: Path) -> None:
    """Reads the files as commands do; prints what each read gives, and the most memory that was in use."""
    from data_pipelines.builders.archives import open_members
    from data_pipelines.builders.base import image_rows, read_rows
    from data_pipelines.checking.report import report_data
    from data_pipelines.errors import InputError
    from data_pipelines.loading.streams import open_config_split
    from tests.data_pipelines.tree import train_data

    config = data_config(folder)

    def archive(name: str) -> list[str]:
        path = folder / name
        return [getattr(found, "reason", "read") for found in read_rows(path, image_rows(open_members(path)))]

    def check() -> list[str]:
        return list(report_data({"ood": open_config_split(config, "ood")}, None, config, thorough=True).faults)

    def train() -> list[str]:
        next(train_data(config, ("ood",), batch_size=6).iterator)
        return []

    reads: dict[str, Callable[[], list[str]]] = {"check": check, "train": train}
    reads |= {path.name: lambda path=path: archive(path.name) for path in folder.iterdir() if path.suffix in _ARCHIVES}
    found: dict[str, object] = {}
    for name, read in reads.items():
        try:
            found[name] = "; ".join(read())
        except InputError as error:
            found[name] = f"refused: {error}"
    # Not getrusage: its peak includes that of the process that has started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found["memory"] = int(status["VmHWM"].split()[0]) << 10
    print(json.dumps(found))


_ARCHIVES = (".zip", ".tar")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("hostile")
    write_files(folder)
    command = [sys.executable, "-m", "tests.data_pipelines.test_hostile", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("check", "000.jpg: is 60000x60000 (width x height) according to its header, more than the 178,956,970 pixels"),
        ("check", "huge.png: is damaged or not an image (Image size (3600000000 pixels) exceeds limit"),
        ("train", "refused: "),
        ("honest.zip", "member 'bomb.jpg' claims 4,294,967,294 bytes, at most 134,217,728 are read"),
        ("lying.zip", "is damaged or not an archive (member 'bomb.jpg': Bad CRC-32"),
        ("link.tar", "refused: "),
        ("link.tar", "member 'x.jpg' is a link or a special file"),
        ("hard.tar", "member 'x.jpg' is a link or a special file"),
        ("absolute.tar", "member '/etc/x.jpg' leads out of the folder"),
        ("above.tar", "member 'a/../../x.jpg' leads out of the folder"),
    ],
)
def test_files_made_to_harm_are_refused(found, name, message):
    assert message in found[name]


def test_they_cost_little_memory(found):
    assert found["memory"] < _MOST_MEMORY


if __name__ == "__main__":
    main(Path(sys.argv[1]))
