"""Labels are compared with the images that they were made from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.checksums import read_ends
from data_pipelines.images.decode import decode_label, image_size
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.labels.examples import encode_label
from data_pipelines.labels.manifest import read_class_pixels, read_manifest
from data_pipelines.labels.provenance import read_adopted
from data_pipelines.labels.store import FileStore
from data_pipelines.labels.verify import Verified, verify_labels
from data_pipelines.sources.folders import FolderSource, open_images
from data_pipelines.sources.records import File, UnreadableError

INFO = dataset_info("voc21")
IDS = ["a", "b", "sub/c", "sub/d", "sub/e"]


def write_images(root: Path) -> None:
    for index, id_ in enumerate(IDS):
        path = root / f"{id_}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), np.uint8)).save(path)


def write_labels(root: Path, folder: Path, *, recorded: bool) -> None:
    """Labels of class 3 with confidence 0.8; an older version did not record the images."""
    store = FileStore(folder, {"fingerprint": "f" * 64}, INFO)
    store.begin()
    labels = []
    for id_ in IDS:
        image = File(root / f"{id_}.png")
        label, confidence = (np.full(image_size(image), value, np.uint8) for value in (3, 204))
        with image.open() as stream:
            checksum = read_ends(stream).checksum
        labels.append(encode_label(id_, label, confidence, INFO, checksum if recorded else None))
    store.write_part(0, labels, {})
    store.finish(IDS, {"labeled": len(IDS)})


@pytest.fixture
def root(tmp_path) -> Path:
    write_images(tmp_path / "ood")
    write_labels(tmp_path / "ood", tmp_path / "labels", recorded=True)
    return tmp_path


def images(root: Path) -> FolderSource:
    return open_images(root / "ood", "", ("root", "split"))


def verify(root: Path) -> Verified:
    return verify_labels(open_label_cache(root / "labels"), images(root), num_threads=2)


def test_sound_labels(root):
    manifest = read_manifest(root / "labels")
    found = verify(root)
    assert found == Verified((), (), {}, {}, 5, manifest["images_sha256"], "")
    assert not found.unusable
    assert not found.messages()
    assert manifest["mean_confidence"] == 0.8


def damage(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "truncated": content[:-9],
        "empty": b"",
        "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "zeros": bytes(len(content)),
    }


@pytest.mark.parametrize("plane", ["labels", "confidence"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "zeros", "missing"])
def test_a_damaged_file_is_found(root, plane, kind):
    path = root / "labels" / plane / "sub/c.png"
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes())[kind])
    found = verify(root)
    if (plane, kind) == ("labels", "missing"):
        assert found.checked == 4
        return
    assert found.unusable == {"sub/c"}
    assert str(path) in found.damaged["sub/c"]
    (message,) = found.messages()
    assert message.startswith("1 cached label(s) are damaged: ")
    file = open_label_cache(root / "labels").planes("sub/c")[plane == "confidence"]
    with pytest.raises(UnreadableError, match=r"sub/c\.png"):
        file.read()


def replace_by_another(path: Path) -> None:
    Image.new("RGB", (9, 9)).save(path)


def replace_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("replace", [replace_by_another, replace_one_byte])
def test_a_replaced_image_is_found(root, replace):
    replace(root / "ood/b.png")
    found = verify(root)
    assert (found.changed, found.unusable, found.faults, found.images_sha256) == (("b",), {"b"}, (), "")
    assert found.messages() == [
        "1 OOD image(s) are not those that were labeled (b): main and label make their labels again"
    ]


def test_a_label_of_another_image_is_found(root):
    shutil.copy(root / "labels/labels/a.png", root / "labels/labels/b.png")
    assert verify(root).changed == ("b",)


def test_an_image_that_was_touched_or_is_missing_is_not_changed(root):
    (root / "ood/a.png").touch()
    (root / "ood/b.png").unlink()
    assert not verify(root).unusable


def test_another_set_of_the_same_names_is_a_fault(root):
    for id_ in IDS[:3]:
        replace_one_byte(root / f"ood/{id_}.png")
    (fault,) = verify(root).faults
    assert "holds labels of other images: 3 of 5 labeled images differ" in fault
    assert "(a; b; sub/c)" in fault
    assert fault.endswith("remove the folder to label again, or set config.ovs.labels_dir to another one")


def test_a_label_of_another_tool_is_a_fault(root):
    path = root / "labels/labels/b.png"
    Image.open(path).save(path)
    found = verify(root)
    assert not found.unusable  # nobody's work is overwritten
    (fault,) = found.faults
    assert "1 label(s) are not made by semiovs_jax.label (b); remove the files" in fault


@pytest.fixture
def old(root) -> Path:
    """Labels of an older version."""
    shutil.rmtree(root / "labels")
    write_labels(root / "ood", root / "labels", recorded=False)
    return root


def test_images_of_old_labels_are_taken_as_they_are(old, caplog):
    assert "images_sha256" not in read_manifest(old / "labels")
    found = verify(old)
    assert set(found.adopted) == set(IDS)
    assert not found.unusable
    store = FileStore(old / "labels", {"fingerprint": "f" * 64}, INFO)
    with caplog.at_level("INFO"):
        store.adopt(found)
    (record,) = caplog.records
    assert "5 label(s) of an older version do not record their images" in record.getMessage()
    assert read_manifest(old / "labels")["images_sha256"] == found.images_sha256
    assert len(read_class_pixels(old / "labels").ids) == 5

    again = verify(old)
    assert again == Verified((), (), {}, {}, 5, found.images_sha256, "")
    replace_one_byte(old / "ood/sub/d.png")
    assert verify(old).changed == ("sub/d",)


def test_an_old_label_of_another_size_is_not_taken(old):
    replace_by_another(old / "ood/a.png")
    found = verify(old)
    assert found.changed == ("a",)
    assert set(found.adopted) == {*IDS} - {"a"}


def test_a_damaged_table_of_old_labels_is_named(old):
    (old / "labels/adopted.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"adopted\.npz: cannot be read .*remove it, then run"):
        read_adopted(old / "labels")


def test_the_text_changes_no_pixel(root):
    label, confidence = open_label_cache(root / "labels").planes("a")
    assert np.unique(decode_label(label, INFO)).tolist() == [3]
    with confidence.open() as stream:
        assert read_ends(stream).length == confidence.path.stat().st_size


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"finished": None}, "finished"),
        ({"finished": 1}, "finished"),
        ({"form": "tape"}, "form"),
        ({"form": 7}, "form"),
        ({"counts": []}, "counts"),
        ({"bad": "x"}, "bad"),
        ({"pixels": 3}, "pixels"),
        ({"form": "shards"}, "shards"),
        ({"form": "shards", "shards": {"name": "ovs", "count": 10**12}}, "shards"),
    ],
)
def test_an_invalid_field_of_the_manifest_is_named(root, change, field):
    path = root / "labels/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=rf"manifest\.json: cannot be read \(invalid: {field}\); remove the folder"):
        open_label_cache(root / "labels")
