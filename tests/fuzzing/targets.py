"""The kinds of files that are fuzzed: how to write valid ones, and how commands read them."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.builders.archives import open_members
from data_pipelines.builders.base import ImageBuilder, image_rows, read_rows
from data_pipelines.builders.samples import Unit
from data_pipelines.builders.units import Preparation, begin, finish, prepare_part
from data_pipelines.builders.webdataset_ood.webdataset_ood_dataset_builder import tar_samples
from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.images.decode import (
    decode_confidence,
    decode_image,
    decode_label,
    image_size,
    label_fault,
    probe_image,
    probe_label,
)
from data_pipelines.labels.cache import open_label_cache
from data_pipelines.labels.examples import encode_label
from data_pipelines.labels.manifest import read_class_pixels
from data_pipelines.labels.open_store import open_store
from data_pipelines.loading.streams import open_split
from data_pipelines.prepare.local import make_builder, prepare
from data_pipelines.sources.folders import existing_folder, open_images, prepared_dataset
from data_pipelines.sources.lists import read_split
from data_pipelines.sources.mixture import open_mixture
from data_pipelines.sources.records import File, Source
from data_pipelines.splits.lists import overlaps
from semiovs_jax.models.clip.file import CLIP
from semiovs_jax.ovs.vocabulary import load_templates, load_vocabulary
from semiovs_jax.weights.files import load_weights, read_metadata, read_safetensors, save_weights
from semiovs_jax.weights.parts import weights_path
from tests.data_pipelines.builders.unit_builder import preparation, unit
from tests.data_pipelines.tree import image, jpeg, label, write_label

_IDENTITY = {"fingerprint": "a" * 64, "ovs": "color", "vocabulary": "voc21"}
_VOC = dataset_info("voc21")


class Target(NamedTuple):
    """A kind of files.

    Attributes:
        write: Writes valid files to a folder.
        files: Patterns of the files whose content is changed.
        read: Reads the files of a folder in all ways in which commands read them.
    """

    write: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path], None]


def settled(read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a call returns; None where it raises an `InputError`, whose message must be a text that can be printed."""
    try:
        return read(*arguments, **options)
    except InputError as error:
        printed(error)
        return None


def printed(*values: object) -> None:
    """Checks that values can be printed, logged and written to files."""
    "".join(map(str, values)).encode()


def _write_lists(folder: Path) -> None:
    (folder / "val.txt").write_text(
        "\ufeff# two columns\nimages/a.jpg masks/a.png\n\nimages/my b.jpg\tmasks/my b.png\n"
        '"images/c 1.jpg"  "masks/c 1.png"\n'
    )
    (folder / "images.txt").write_text("images/a.jpg\r\nb.png\r\n#c.png\r\nd.webp x.png\r\n")


def _read_lists(folder: Path) -> None:
    for split in ("val.txt", "images.txt"):
        for with_labels in (True, False):
            if found := settled(read_split, folder, split, "--list", with_labels=with_labels):
                for path in (*found.images, *(found.labels or ())):
                    assert (folder / path).is_relative_to(folder)
                    printed(path)
    settled(overlaps, {path.name: path.read_bytes() for path in folder.iterdir()})


def _write_vocabulary(folder: Path) -> None:
    classes = [
        {"name": "field", "concepts": ["grass", "soil"]},
        {"name": "cow", "concepts": [["cow", "cattle"], "calf"]},
    ]
    content = {
        "name": "farm",
        "source": "me",
        "templates": ["a photo of a {}", "a {}"],
        "counts": {"classes": 2, "concepts": 4},
        "classes": classes,
    }
    (folder / "vocabulary.json").write_text(json.dumps(content))
    (folder / "templates.json").write_text(json.dumps(["a {}.", "the {}."]))


def _read_vocabulary(folder: Path) -> None:
    settled(load_templates, str(folder / "templates.json"))
    if words := settled(load_vocabulary, str(folder / "vocabulary.json")):
        assert words.sha256 != words.split_synonyms().sha256 or words == words.split_synonyms()
        for concept in words.concepts:
            printed(*words.prompts(concept))
        printed(words.name, words.source, *words.classes)


def _write_dataset(folder: Path) -> None:
    facts = {
        "name": "farm",
        "classes": ["field", "cow", "fence"],
        "ignore_index": 255,
        "background": 0,
        "palette": [[0, 0, 0], [255, 0, 0], [0, 0, 255]],
        "counts": {"train": 3, "val": 2},
    }
    (folder / "classes.json").write_text(json.dumps(facts))


def _read_dataset(folder: Path) -> None:
    if info := settled(dataset_info, folder / "classes.json"):
        assert info.palette.shape == (256, 3)
        assert 0 < info.num_classes <= info.ignore_index <= 255
        assert info.background is None or 0 <= info.background < info.num_classes
        printed(info.name, *info.classes)
        assert all(count >= 0 for count in info.counts.values())


def _write_mixture(folder: Path) -> None:
    for name in ("coco", "web"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").write_bytes(jpeg(image(1)))
    (folder / "web" / "list.txt").write_text("1.jpg\n")
    sources = [
        {"name": "coco", "root": "coco", "weight": 2},
        {"name": "web", "root": "web", "split": "list.txt", "weight": 1, "once": True},
    ]
    (folder / "ood.json").write_text(json.dumps({"sources": sources}))


def _read_mixture(folder: Path) -> None:
    def open_source(root: Path, split: str, name: str) -> Source:
        return open_images(existing_folder(str(root), name), split, (name, name))

    if mixture := settled(open_mixture, folder / "ood.json", open_source):
        assert len(mixture.parts) == len(mixture.sources)
        printed(*mixture.ids())
        assert all(mixture[index].id for index in range(len(mixture)))


_LABELED, _BAD = [f"web/{i}" for i in range(3)], "web/bad"


def _write_labels(folder: Path) -> None:
    for prepared in (False, True):
        store = open_store(folder / ("shards" if prepared else "files"), _IDENTITY, _VOC, prepared=prepared)
        store.begin()
        for number, ids in enumerate(store.divide([[*_LABELED, _BAD]], 4)):
            planes = [(id_, label(i), np.full_like(label(i), 200)) for i, id_ in enumerate(ids) if id_ != _BAD]
            store.write_part(number, [encode_label(*plane, _VOC) for plane in planes], {_BAD: "is damaged"})
        store.finish([*_LABELED, _BAD], {"labeled": 3})


def _read_labels(folder: Path) -> None:
    for form in ("files", "shards"):
        if cache := settled(open_label_cache, folder / form):
            printed(*(settled(cache.faults) or ()))
            for id_ in (*_LABELED, _BAD):
                settled(cache.is_labeled, id_)
                for plane in settled(cache.planes, id_) or ():
                    settled(plane.read)
            printed(*(settled(lambda: cache.bad) or {}).values())
        settled(read_class_pixels, folder / form)
        if store := settled(open_store, folder / form, _IDENTITY, _VOC, prepared=form == "shards"):
            settled(store.open)
            settled(store.is_labeled, _BAD)
            settled(store.finished, [*_LABELED, _BAD])


def _write_shards(folder: Path) -> None:
    for i in range(3):
        (folder / "photos").mkdir(exist_ok=True)
        (folder / "photos" / f"{i}.jpg").write_bytes(jpeg(image(i)))
    (folder / "list.txt").write_text("1.jpg\n0.jpg\n")
    prepare(_image_folder(folder))


def _image_folder(folder: Path) -> ImageBuilder:
    return make_builder("image_folder", folder / "data", str(folder / "photos"))


def _read_shards(folder: Path) -> None:
    from data_pipelines.sources.shards import open_shards  # a slow import

    root = settled(prepared_dataset, folder / "data" / "image_folder")
    for split in ("", "train"):
        if root and (source := settled(open_shards, root, split)):
            _read_records(source)
    arguments = (str(folder / "data" / "image_folder"), str(folder / "list.txt"), ("--root", "--list"))
    if source := settled(open_split, *arguments, with_labels=False):
        _read_records(source)
    printed(settled(lambda: prepare(_image_folder(folder))))


def _read_records(source: Source) -> None:
    printed(*(settled(source.ids) or ()))
    for index in range(min(len(source), 10)):
        if record := settled(source.__getitem__, index):
            settled(decode_image, record.image)


def _preparation(folder: Path) -> tuple[Preparation, dict[str, list[Unit]]]:
    return preparation(folder), {"train": [unit("first", 0, 2), unit("none", 0, bad=("x.jpg",)), unit("last", 2, 3)]}


def _write_preparation(folder: Path) -> None:
    job, units = _preparation(folder)
    for part in begin(job, units):
        prepare_part(job, part)


def _read_preparation(folder: Path) -> None:
    job, units = _preparation(folder)
    for part in settled(begin, job, units) or ():
        settled(prepare_part, job, part)
    if report := settled(finish, job, units):
        printed(report.summary())


def _members() -> dict[str, bytes]:
    return {"a/1.jpg": jpeg(image(1)), "a/2.png": b"cut", "notes.txt": b"x" * 100, "b/3.jpg": jpeg(image(3))}


def _write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for name, content in _members().items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if name.startswith("a") else zipfile.ZIP_STORED)


def _write_tar(folder: Path) -> None:
    for name, kind in (("x.tar", tarfile.USTAR_FORMAT), ("y.tar", tarfile.PAX_FORMAT), ("z.tar", tarfile.GNU_FORMAT)):
        with tarfile.open(folder / name, "w", format=kind) as archive:
            for member, content in _members().items():
                long = "" if kind == tarfile.USTAR_FORMAT else "é" * 120
                info = tarfile.TarInfo(f"{long}{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _read_archives(folder: Path) -> None:
    for path in folder.iterdir():
        if members := settled(open_members, path):
            for name in settled(members.names) or ():
                settled(members.read, name)
            for row in settled(image_rows, members) or ():
                settled(list, read_rows(path, [row]))
        if path.suffix == ".tar":
            settled(lambda: list(tar_samples(path)))  # noqa: B023


def _write_weights(folder: Path) -> None:
    metadata = {key: read_metadata(weights_path("shapes_clip"))[key] for key in ("kind", "config")}
    save_weights(folder / "x.safetensors", {"a/0": np.arange(6.0).reshape(2, 3), "b": np.ones(2, np.float16)}, metadata)


def _read_weights(folder: Path) -> None:
    path = folder / "x.safetensors"
    for read in (read_metadata, read_safetensors, load_weights, CLIP.load_config):
        settled(read, str(path))


def _write_images(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    photo = Image.fromarray(image(1))
    photo.save(folder / "a.jpg", exif=exif)
    photo.save(folder / "b.jpg", progressive=True)
    photo.save(folder / "c.png", exif=exif)
    photo.save(folder / "d.webp", exif=exif)
    write_label(folder / "e.png", label(1))
    Image.fromarray(label(1)).save(folder / "f.png")


def _read_images(folder: Path) -> None:
    for path in folder.iterdir():
        file = File(path)
        pixels, size = settled(decode_image, file), settled(image_size, file)
        assert pixels is None or size is None or pixels.shape == (*size, 3)
        facts = settled(probe_image, file)
        assert facts is None or size is None or facts.size == size
        settled(decode_image, file, (8, 8))
        settled(decode_confidence, file)
        if found := settled(probe_label, file):
            label_fault(found, _VOC)
            plane = settled(decode_label, file, _VOC)
            assert plane is None or plane.shape == found.size


TARGETS = {
    "lists": Target(_write_lists, ("*.txt",), _read_lists),
    "vocabulary": Target(_write_vocabulary, ("*.json",), _read_vocabulary),
    "dataset": Target(_write_dataset, ("*.json",), _read_dataset),
    "mixture": Target(_write_mixture, ("*.json", "web/list.txt"), _read_mixture),
    "labels": Target(_write_labels, ("*/*.json", "*/*.npz", "*/*-of-*", "*/*.txt", "*/bad/**/*.txt"), _read_labels),
    "shards": Target(_write_shards, ("data/**/*.json", "data/**/*.txt", "data/**/*-of-*", "*.txt"), _read_shards),
    "preparation": Target(_write_preparation, ("**/*.json",), _read_preparation),
    "zip": Target(_write_zip, ("*.zip",), _read_archives),
    "tar": Target(_write_tar, ("*.tar",), _read_archives),
    "safetensors": Target(_write_weights, ("*.safetensors",), _read_weights),
    "images": Target(_write_images, ("*",), _read_images),
}
