import gzip
import hashlib
import http.server
import importlib
import io
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo

from data_pipelines.builders import voc
from data_pipelines.builders.base import ImageBuilder
from data_pipelines.builders.downloads import Archive
from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_image
from data_pipelines.prepare.local import DATASETS, make_builder, prepare
from data_pipelines.sources.folders import open_list
from data_pipelines.sources.shard_files import read_ids
from data_pipelines.sources.shards import open_shards
from tests.data_pipelines.builders.test_archives import write_tar, write_zip
from tests.data_pipelines.builders.test_base import encoded
from tests.data_pipelines.tree import open_stream


def plane(seed: int) -> bytes:
    """An encoded label plane with a palette."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 21, (12, 9), np.uint8), "L").convert("P")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


PHOTOS = {f"JPEGImages/200{n}.jpg": encoded(n) for n in (4, 1, 3, 2, 5)}
VOC2012 = {f"VOCdevkit/VOC2012/{name}": content for name, content in PHOTOS.items()} | {
    "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": b"2003\n2001\n",
    "VOCdevkit/VOC2012/SegmentationClass/2001.png": plane(9),
    "VOCdevkit/VOC2007/JPEGImages/1999.jpg": encoded(9),
}
AUGMENTED = {f"SegmentationClassAug/200{n}.png": plane(n) for n in (1, 2, 3, 4)} | {
    "__MACOSX/SegmentationClassAug/._2001.png": b"x"
}
CONTEXT = {
    f"SegmentationClassContext60/{split}/200{n}.png": plane(n)
    for split, numbers in {"train": (4, 1), "val": (5, 2)}.items()
    for n in numbers
}


def builder_class(dataset: str) -> type[ImageBuilder]:
    return importlib.import_module(f"data_pipelines.builders.{dataset}.{dataset}_dataset_builder").Builder


def know(monkeypatch: pytest.MonkeyPatch, dataset: str, content: bytes, source: str) -> None:
    """Makes `content` what a builder expects at an address."""
    info = UrlInfo(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=None)
    monkeypatch.setattr(builder_class(dataset), "url_infos", {source: info})


def contents(folder: Path, split: str) -> dict[str, tuple[bytes, ...]]:
    """Image and, if there is one, label of each example by id, as stored; checks hashes and the list of ids."""
    builder = tfds.builder_from_directory(folder)
    kinds = [kind for kind in ("image", "label") if kind in builder.info.features]
    examples = builder.as_data_source(split, decoders={kind: tfds.decode.SkipDecoding() for kind in kinds})
    source = open_shards(folder, split)
    found = {}
    for index, example in enumerate(examples):
        record = source[index]
        assert example["image"] == record.image.read()
        assert example["sha256"].decode() == hashlib.sha256(example["image"]).hexdigest()
        found[record.id] = tuple(example[kind] for kind in kinds)
    assert list(read_ids(folder, split) or ()) == list(source.ids()) == list(found)
    assert "tensorflow" not in sys.modules
    return found


def voc_contents(labels: dict[str, bytes], stems: list[str]) -> dict[str, tuple[bytes, bytes]]:
    planes = {Path(name).stem: content for name, content in labels.items()}
    return {f"JPEGImages/{stem}": (PHOTOS[f"JPEGImages/{stem}.jpg"], planes[stem]) for stem in stems}


@pytest.mark.parametrize("extracted", [False, True])
def test_voc_has_the_augmented_labels(tmp_path, monkeypatch, extracted):
    manual = tmp_path / "manual"
    if extracted:
        write_folder(write_folder(manual, VOC2012), AUGMENTED)
    else:
        manual.mkdir()
        tar = write_tar(manual / "VOCtrainval_11-May-2012.tar", VOC2012)
        know(monkeypatch, "voc2012_semi", tar.read_bytes(), voc.VOC2012.source)
        write_zip(manual / "SegmentationClass.zip", AUGMENTED)
    found = prepare(make_builder("voc2012_semi", tmp_path / "out"), manual)
    assert (found.report.images, found.report.bad) == ({"train": 2, "val": 2}, [])
    assert contents(found.folder, "train") == voc_contents(AUGMENTED, ["2002", "2004"])
    assert contents(found.folder, "val") == voc_contents(AUGMENTED, ["2001", "2003"])


def test_ids_are_those_of_a_split_list_over_the_same_folder(tmp_path):
    manual = write_folder(write_folder(tmp_path / "manual", VOC2012), CONTEXT)
    found = prepare(make_builder("pascal_context60", tmp_path / "out"), manual)
    tree = write_folder(write_folder(tmp_path / "tree", PHOTOS), CONTEXT)
    for split, stems in {"train": ["2001", "2004"], "val": ["2002", "2005"]}.items():
        lines = [f"JPEGImages/{stem}.jpg SegmentationClassContext60/{split}/{stem}.png" for stem in stems]
        (tree / f"{split}.txt").write_text("\n".join(lines))
        listed = open_list(str(tree), f"{split}.txt", ("root", "split"), with_labels=True)
        records = [listed[i] for i in range(len(listed))]
        expected = {record.id: (record.image.read(), record.label.read()) for record in records}
        assert contents(found.folder, split) == expected


def test_context_prefers_the_photographs_that_are_there(tmp_path, monkeypatch):
    manual = tmp_path / "manual"
    manual.mkdir()
    write_zip(manual / "ground_truth_pascal_context.zip", CONTEXT)
    photos = {f"VOCdevkit/VOC2010/{name}": content for name, content in PHOTOS.items()}
    write_tar(manual / "VOCtrainval_03-May-2010.tar", photos)
    found = prepare(make_builder("pascal_context60", tmp_path / "out"), manual)
    assert contents(found.folder, "val") == voc_contents(CONTEXT, ["2002", "2005"])


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (VOC2012, AUGMENTED | {"SegmentationClassAug/1990.png": plane(1)}, r"1 image\(s\) missing \(1990\)"),
        (VOC2012, {"SegmentationClassAug/2001.png": plane(1)}, r"1 label\(s\) missing \(2003\)"),
        (VOC2012, {"SegmentationClassAug/readme.txt": b"x"}, r"holds no \./\*\.png"),
        ({"VOCdevkit/VOC2007/JPEGImages/1.jpg": b"x"}, AUGMENTED, "holds no VOC2012/JPEGImages"),
        ({"VOCdevkit/VOC2012/JPEGImages/2001.jpg": b"x"}, AUGMENTED, r"Segmentation/val\.txt is missing or empty"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(tmp_path, files, labels, message):
    manual = write_folder(write_folder(tmp_path / "manual", files), labels)
    with pytest.raises(InputError, match=message):
        prepare(make_builder("voc2012_semi", tmp_path / "out"), manual)


def test_labels_that_are_missing_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"SegmentationClassAug.*not found in --manual_dir \(not given, or empty\)"):
        prepare(make_builder("voc2012_semi", tmp_path / "out"))
    with pytest.raises(InputError, match=r"--manual_dir=.*none: no such folder"):
        prepare(make_builder("voc2012_semi", tmp_path / "out"), tmp_path / "none")


COCO = {"train2017/000000000009.jpg": encoded(9), "train2017/000000000002.jpg": encoded(2)}


def test_coco_has_the_ids_of_its_folder(tmp_path, monkeypatch):
    manual = tmp_path / "manual"
    manual.mkdir()
    archive = write_zip(manual / "train2017.zip", COCO)
    know(monkeypatch, "coco_ood", archive.read_bytes(), "http://images.cocodataset.org/zips/train2017.zip")
    zipped = prepare(make_builder("coco_ood", tmp_path / "out"), manual)
    write_folder(tmp_path / "extracted", COCO)
    extracted = prepare(make_builder("coco_ood", tmp_path / "other"), tmp_path / "extracted")
    folder = open_stream(ConfigDict({"ood_root": str(tmp_path / "extracted/train2017"), "ood_split": ""}), "ood")
    expected = {folder[i].id: (folder[i].image.read(),) for i in range(len(folder))}
    assert list(expected) == ["000000000002", "000000000009"]
    assert contents(zipped.folder, "train") == contents(extracted.folder, "train") == expected


def test_a_wrong_checksum_says_what_was_expected_and_found(tmp_path, monkeypatch):
    manual = tmp_path / "manual"
    manual.mkdir()
    found = hashlib.sha256(write_zip(manual / "train2017.zip", COCO).read_bytes()).hexdigest()
    with pytest.raises(InputError, match=rf"expected sha256 69a8bb58.*\(19,336,861,798 bytes\), found {found}"):
        prepare(make_builder("coco_ood", tmp_path / "out"), manual)
    assert not (tmp_path / "out/coco_ood/1.0.0").exists()


@pytest.fixture
def host(tmp_path) -> Iterator[str]:
    """Serves the files of `tmp_path`/served on loopback; its address."""
    (tmp_path / "served").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_not_there_is_downloaded_and_verified(tmp_path, monkeypatch, host):
    address = f"{host}/train2017.zip"
    monkeypatch.setattr(
        builder_class("coco_ood"), "ARCHIVES", {"images": (Archive(("train2017.zip",), address, "train2017"),)}
    )
    content = write_zip(tmp_path / "served/train2017.zip", COCO).read_bytes()
    know(monkeypatch, "coco_ood", content, address)
    found = prepare(make_builder("coco_ood", tmp_path / "out"))
    assert list(contents(found.folder, "train")) == ["000000000002", "000000000009"]
    assert prepare(make_builder("coco_ood", tmp_path / "out")).reused

    write_zip(tmp_path / "served/train2017.zip", {"train2017/1.jpg": encoded(1)})
    wrong = hashlib.sha256((tmp_path / "served/train2017.zip").read_bytes()).hexdigest()
    expected = hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match=rf"wrong checksum: \* Expected: .*{expected}.*Got: .*{wrong}.*download it"):
        prepare(make_builder("coco_ood", tmp_path / "wrong"))
    (tmp_path / "served/train2017.zip").unlink()
    with pytest.raises(
        InputError, match=r"train2017\.zip: cannot be downloaded \(.*404.*put train2017\.zip or the folder"
    ):
        prepare(make_builder("coco_ood", tmp_path / "missing"))


TREE = {
    "b.png": encoded(1, "PNG"),
    "a/1.JPG": encoded(2),
    "a/b/2.webp": encoded(3, "WEBP"),
    "a/notes.txt": b"x",
    ".git/c.jpg": encoded(4),
}


def test_a_folder_and_archives_of_it_give_the_same(tmp_path):
    folder = write_folder(tmp_path / "photos", TREE)
    sources = [folder, write_zip(tmp_path / "photos.zip", TREE), write_tar(tmp_path / "photos.tar", TREE)]
    stream = open_stream(ConfigDict({"ood_root": str(folder), "ood_split": ""}), "ood")
    expected = {stream[i].id: (stream[i].image.read(),) for i in range(len(stream))}
    assert list(expected) == ["a/1", "a/b/2", "b"]
    for source in sources:
        found = prepare(make_builder("image_folder", tmp_path / f"out{source.suffix}", str(source)))
        assert contents(found.folder, "train") == expected


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_odd_photographs_keep_their_bytes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = Image.open(io.BytesIO(encoded(1)))
    odd = {
        "alpha.png": saved(photo.convert("RGBA"), "PNG"),
        "cmyk.jpg": saved(photo.convert("CMYK"), "JPEG"),
        "deep.png": saved(Image.fromarray(np.arange(108, dtype=np.uint16).reshape(12, 9) * 600), "PNG"),
        "one.jpg": encoded(1, size=(1, 1)),
        "turned.jpg": saved(photo, "JPEG", exif=exif),
    }
    found = prepare(make_builder("image_folder", tmp_path / "out", str(write_folder(tmp_path / "photos", odd))))
    assert contents(found.folder, "train") == {Path(name).stem: (content,) for name, content in odd.items()}
    source = open_shards(found.folder)
    assert [decode_image(source[i].image).shape for i in range(5)] == [(12, 9, 3)] * 3 + [(1, 1, 3), (9, 12, 3)]


def test_labels_that_cannot_be_used_are_listed(tmp_path):
    deep = Image.fromarray(np.zeros((12, 9), np.uint16))
    faulty = {
        "2001.png": (plane(1)[:60], "is damaged or not an image"),
        "2002.png": (encoded(2, "PNG"), "label image has mode RGB, expected class indices"),
        "2003.png": (
            saved(Image.open(io.BytesIO(plane(3))).resize((4, 4)), "PNG"),
            r"(height, width) (4, 4), expected (",
        ),
        "2005.png": (saved(deep, "PNG"), "label image has mode I;16"),
    }
    labels = AUGMENTED | {f"SegmentationClassAug/{name}": content for name, (content, _) in faulty.items()}
    val = {"VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": b"2004\n"}
    manual = write_folder(write_folder(tmp_path / "manual", VOC2012 | val), labels)
    with pytest.raises(InputError, match=r"'train' has no image that can be used: .*2001\.png: is damaged.*2002\.png"):
        prepare(make_builder("voc2012_semi", tmp_path / "out"), manual)
    (manual / "VOCdevkit/VOC2012/JPEGImages/2006.jpg").write_bytes(encoded(6))
    (manual / "SegmentationClassAug/2006.png").write_bytes(plane(6))
    with pytest.raises(InputError, match=r"was begun with other units or settings: .*name another folder, or remove"):
        prepare(make_builder("voc2012_semi", tmp_path / "out"), manual)
    found = prepare(make_builder("voc2012_semi", tmp_path / "other"), manual)
    assert found.report.images == {"train": 1, "val": 1}
    assert [Path(file.name).name for file in found.report.bad] == list(faulty)
    assert all(expected in file.reason for file, (_, expected) in zip(found.report.bad, faulty.values(), strict=True))


def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path):
    archive = write_zip(tmp_path / "x.zip", TREE | {"../../evil.jpg": encoded(5)})
    with pytest.raises(
        InputError, match=r"member '\.\./\.\./evil\.jpg' leads out of the folder.*do not use this archive"
    ):
        prepare(make_builder("image_folder", tmp_path / "out", str(archive)))
    write_tar(tmp_path / "0.tar", TREE | {"/evil.jpg": encoded(5)})
    with pytest.raises(InputError, match=r"member '/evil\.jpg' leads out of the folder"):
        prepare(make_builder("webdataset_ood", tmp_path / "out", str(tmp_path / "0.tar")))
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("*.array_record*"))


def test_another_prepared_dataset_is_not_taken_for_the_wanted(tmp_path):
    first, second = (write_folder(tmp_path / name, {"a.jpg": encoded(1)}) for name in ("first", "second"))
    assert not prepare(make_builder("image_folder", tmp_path / "out", str(first))).reused
    again = prepare(make_builder("image_folder", tmp_path / "out", str(first)))
    assert (again.reused, again.report.images) == (True, {"train": 1})
    with pytest.raises(
        InputError, match=rf"is already there, made from {first} \(1 files.*not from {second} \(1 files"
    ):
        prepare(make_builder("image_folder", tmp_path / "out", str(second)))
    (first / "notes.txt").write_bytes(b"x")
    assert prepare(make_builder("image_folder", tmp_path / "out", str(first))).reused
    (first / "a.jpg").rename(first / "c.jpg")
    with pytest.raises(InputError, match=rf"made from {first} \(1 files.*not from {first} \(1 files"):
        prepare(make_builder("image_folder", tmp_path / "out", str(first)))
    (first / "b.jpg").write_bytes(encoded(2))
    with pytest.raises(InputError, match=rf"made from {first} \(1 files.*not from {first} \(2 files"):
        prepare(make_builder("image_folder", tmp_path / "out", str(first)))
    (again.folder / "metadata.json").unlink()
    with pytest.raises(InputError, match="is already there, without a record of its source"):
        prepare(make_builder("image_folder", tmp_path / "out", str(first)))


def test_a_dataset_of_an_earlier_version_is_known(tmp_path):
    first, second = (write_folder(tmp_path / name, TREE | {"cut.jpg": b"x"}) for name in ("first", "second"))
    found = prepare(make_builder("image_folder", tmp_path / "out", str(first)))
    for name in ("preparation.json", "report.json"):
        (found.folder / name).unlink()
    files = {path: path.read_bytes() for path in found.folder.iterdir()}
    again = prepare(make_builder("image_folder", tmp_path / "out", str(first)))
    assert again == found._replace(report=found.report._replace(repeated=None), reused=True)
    with pytest.raises(InputError, match=rf"is already there, made from {first} \(.*not from {second} \("):
        prepare(make_builder("image_folder", tmp_path / "out", str(second)))
    assert {path: path.read_bytes() for path in found.folder.iterdir()} == files


def test_prepared_again_with_other_labels_is_refused(tmp_path):
    manual = write_folder(write_folder(tmp_path / "manual", VOC2012), AUGMENTED)
    first = prepare(make_builder("voc2012_semi", tmp_path / "out"), manual)
    assert prepare(make_builder("voc2012_semi", tmp_path / "out"), manual) == first._replace(reused=True)
    assert prepare(make_builder("voc2012_semi", tmp_path / "out")) == first._replace(reused=True)
    (manual / "SegmentationClassAug/2004.png").write_bytes(plane(4) + b"more")
    with pytest.raises(InputError, match=r"made from .*SegmentationClassAug \(4 files.*, not from .*\(4 files"):
        prepare(make_builder("voc2012_semi", tmp_path / "out"), manual)


def crawl(*numbers: int) -> dict[str, bytes]:
    """Members of a tar of img2dataset."""
    members = {}
    for n in numbers:
        members |= {f"{n:09}.jpg": encoded(n), f"{n:09}.json": b"{}", f"{n:09}.txt": b"a caption.jpg"}
    return members


def test_webdataset_tars_give_images_by_shard_and_key(tmp_path):
    (tmp_path / "crawl").mkdir()
    write_tar(tmp_path / "crawl/00001.tar", crawl(7))
    write_tar(tmp_path / "crawl/00000.tar", crawl(5, 3) | {"sub/a.b.png": encoded(1, "PNG")})
    (tmp_path / "crawl/00000_stats.json").write_text("{}")
    expected = {"00000/000000005": 5, "00000/000000003": 3, "00000/sub/a": 1, "00001/000000007": 7}
    for number, source in enumerate(("crawl", "crawl/0*.tar")):
        found = prepare(make_builder("webdataset_ood", tmp_path / str(number), str(tmp_path / source)))
        assert found.report.bad == []
        assert contents(found.folder, "train") == {
            id_: (encoded(n, "PNG" if n == 1 else "JPEG"),) for id_, n in expected.items()
        }
        assert len(list(found.folder.glob("*.array_record*"))) == 2


def test_damaged_tars_and_images_are_listed_and_the_rest_is_kept(tmp_path):
    cut = write_tar(tmp_path / "0.tar", crawl(1, 2, 3))
    with tarfile.open(cut) as archive:
        middle = archive.getmember("000000003.jpg").offset_data + 100
    cut.write_bytes(cut.read_bytes()[:middle])
    (tmp_path / "1.tar").write_bytes(b"<html>not found</html>" * 50)
    (tmp_path / "2.tar").write_bytes(gzip.compress(cut.read_bytes()))
    write_tar(
        tmp_path / "3.tar", crawl(6) | {"7.jpg": encoded(7)[:150], "8.png": b"", "000000006.png": encoded(8, "PNG")}
    )
    write_tar(tmp_path / "4.tar", {"0.txt": b"a caption"})
    found = prepare(make_builder("webdataset_ood", tmp_path / "out", str(tmp_path)))
    assert contents(found.folder, "train") == {
        "0/000000001": (encoded(1),),
        "0/000000002": (encoded(2),),
        "3/000000006": (encoded(6),),
    }
    names = [str(tmp_path / name) for name in ("0.tar", "1.tar", "2.tar")]
    names += [f"{tmp_path / '3.tar'}: {name}" for name in ("7.jpg", "8.png", "000000006.png")]
    names.append(str(tmp_path / "4.tar"))
    assert [file.name for file in found.report.bad] == names
    reasons = ["truncated within member '000000003.jpg'", *["is damaged or not an archive"] * 2]
    reasons += [*["is damaged or not an image"] * 2, "another image has the same key '000000006'"]
    reasons.append("holds no image")
    assert all(reason in file.reason for reason, file in zip(reasons, found.report.bad, strict=True))
    again = prepare(make_builder("webdataset_ood", tmp_path / "out", str(tmp_path)))
    assert (again.reused, again.report.bad) == (True, found.report.bad)


def test_tars_must_be_there_and_have_names_of_their_own(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"x\*\.tar: no tar file"):
        prepare(make_builder("webdataset_ood", tmp_path / "out", str(tmp_path / "x*.tar")))
    for folder in "ab":
        write_tar(tmp_path / folder / "0.tar", crawl(1))
    with pytest.raises(InputError, match=r"a/0\.tar and .*b/0\.tar have the same stem"):
        prepare(make_builder("webdataset_ood", tmp_path / "out", str(tmp_path)))


@pytest.mark.parametrize("dataset", DATASETS)
def test_builders_describe_themselves(dataset):
    builder = builder_class(dataset)
    metadata = builder.get_metadata()
    assert builder.name == dataset
    assert metadata.description
    assert builder.url_infos is not None
