"""Base classes of the builders: the units of a split, and the way from files to examples."""

import abc
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from data_pipelines.builders.archives import Members, member_path, opened_members
from data_pipelines.builders.downloads import Archive, describe, locate, origin
from data_pipelines.builders.downloads import download_config as verified
from data_pipelines.builders.samples import BadFile, Content, Sample, Unit
from data_pipelines.builders.units import Preparation, prepare_in_turn
from data_pipelines.errors import InputError, first_few
from data_pipelines.files import expand, is_utf8
from data_pipelines.images.decode import lossy_label, probe_image
from data_pipelines.sources.folders import IMAGE_SUFFIXES, is_image
from data_pipelines.sources.lists import collisions
from data_pipelines.sources.records import UnreadableError, record_id

UNIT_IMAGES = 1000
_LABEL_MODES = ("P", "L")  # the modes that `decode.decode_label` reads


class Row(NamedTuple):
    """The names of one image and its label in their archives.

    Attributes:
        id: The id of the sample.
        image: Member of the images.
        label: Member of the labels; None without labels.
    """

    id: str
    image: str
    label: str | None = None


class ImageBuilder(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders: ArrayRecord files of encoded images in a fixed order, written and read without TensorFlow.

    An example holds `image`, `id` (text), `sha256` (of the image's bytes, hexadecimal) and, if LABELED, `label`. Image
    and label are the bytes of the source's files: read them with `tfds.decode.SkipDecoding`. A list beside the shards
    has the ids of a split (`shard_files.ids_path`). `info.metadata` holds `source` (see `origin`) and `bad`, the files
    left out and why. `units` writes the files.

    Attributes:
        LABELED: Whether the samples have labels.
        ARCHIVES: The archives of the dataset, by role. One of the archives of each role is enough.
    """

    LABELED = False
    ARCHIVES: Mapping[str, Sequence[Archive]] = MappingProxyType({})

    def __init__(self, **options: Any):
        super().__init__(file_format="array_record", **options)

    @abc.abstractmethod
    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """The units of each split, in a fixed order.

        Args:
            dl_manager: TensorFlow Datasets' download manager.

        Raises:
            InputError: The source is missing, differs from the expected one, or cannot be used.
        """

    def locate(self, role: str, dl_manager: Any) -> Path:
        """Finds the archive of a role in ARCHIVES, or the folder it was extracted to (see `downloads.locate`)."""
        return locate(self.ARCHIVES[role], dl_manager, self.url_infos)

    def origin(self, dl_manager: Any) -> dict[str, str]:
        """Describes the source of the dataset by role, as far as known without downloading or reading it."""
        found = {role: origin(archives, dl_manager, self.url_infos) for role, archives in self.ARCHIVES.items()}
        return {role: text for role, text in found.items() if text is not None}

    def download_and_prepare(self, *, download_config: Any = None, **options: Any) -> None:
        """See the base class. Without a config, downloads are verified (see `downloads.download_config`)."""
        super().download_and_prepare(download_config=download_config or verified(), **options)

    def example(self, sample: Sample) -> dict[str, Any]:
        """Turns a sample into the features of an example."""
        found: dict[str, Any] = {
            "image": sample.image,
            "id": sample.id,
            "sha256": hashlib.sha256(sample.image).hexdigest(),
        }
        if self.LABELED:
            found["label"] = sample.label
        return found

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "id": tfds.features.Text(),
            "sha256": tfds.features.Text(),
        }
        if self.LABELED:
            features["label"] = tfds.features.Image(shape=(None, None, 1))
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:

        units = self.units(dl_manager)
        prepare_in_turn(Preparation(self, Path(self.data_path), self.origin(dl_manager)), units)
        self.info.read_from_directory(self.data_path)


class SourceBuilder(ImageBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders that read a given source.

    Attributes:
        source: Path or pattern of the source; None if it is missing.
    """

    def __init__(self, *, source: str | Path = "", **options: Any):
        self.source = expand(source).absolute() if source else None
        super().__init__(**options)

    @abc.abstractmethod
    def files(self) -> Sequence[Path]:
        """The files of the source, in a fixed order; raises `InputError` if there are none."""

    def origin(self, dl_manager: Any) -> dict[str, str]:
        """Describes the files of the source."""
        return {"source": describe(self.given(), self.files())}

    def given(self) -> Path:
        """The source; raises `InputError` if it is missing."""
        if self.source is None:
            raise InputError(f"--source is empty: set it to the files of {self.name}")
        return self.source


def id_fault(id_: str) -> str | None:
    """Why an id cannot be a line of UTF-8 text; None if it can."""
    if not id_ or "\n" in id_ or "\r" in id_:
        return f"its id {id_!r} is empty or contains a line break; rename it"
    if not is_utf8(id_):
        return f"its id {id_!r} is not UTF-8; rename it"
    return None


def checked_sample(id_: str, image: Content, label: Content | None = None) -> Sample | BadFile:
    """A sample, or the file that makes it unusable.

    The id must be a line of text, the image complete (see `decode.probe_image`), and the label a mask of the same size.
    """
    if fault := id_fault(id_):
        return BadFile(image.name, fault)
    try:
        size = probe_image(image).size
    except UnreadableError as error:
        return BadFile(image.name, reason(error, image.name))
    if label is None:
        return Sample(id_, image.data)
    try:
        facts = probe_image(label)
    except UnreadableError as error:
        return BadFile(label.name, reason(error, label.name))
    if fault := lossy_label(facts.format):
        return BadFile(label.name, fault)
    if facts.mode not in _LABEL_MODES:
        expected = "class indices as a palette (P) or 8-bit gray (L) PNG"
        return BadFile(label.name, f"label image has mode {facts.mode}, expected {expected}")
    if facts.size != size:
        return BadFile(label.name, f"label image has (height, width) {facts.size}, expected {size} as its photograph")
    return Sample(id_, image.data, label.data)


def row_units(images: Path, rows: Sequence[Row], labels: Path | None = None) -> list[Unit]:
    """Units of `UNIT_IMAGES` rows each.

    Args:
        images: Archive or folder of the images.
        rows: The rows, in order.
        labels: Archive or folder of the labels.
    """
    units = []
    for start in range(0, len(rows), UNIT_IMAGES):
        part = tuple(rows[start : start + UNIT_IMAGES])
        name = f"{images}: images {start}-{start + len(part) - 1}"
        units.append(Unit(name, functools.partial(read_rows, images, part, labels)))
    return units


def read_rows(images: Path, rows: Sequence[Row], labels: Path | None = None) -> Iterator[Sample | BadFile]:
    """Reads the images and labels of rows, in order. Takes the arguments of `row_units`."""
    for row in rows:
        image = _read_member(images, row.image)
        label = _read_member(labels, row.label) if labels is not None and row.label is not None else None
        if isinstance(image, BadFile):
            yield image
        elif isinstance(label, BadFile):
            yield label
        else:
            yield checked_sample(row.id, image, label)


def image_rows(members: Members, folder: str = "") -> list[Row]:
    """Rows of all images in an archive or folder, found by suffix and sorted by name. Hidden ones are skipped.

    Args:
        members: The files.
        folder: Path at the start of names that ids leave out.

    Raises:
        InputError: There is no image, or several images have the same id.
    """
    paths = {name.removeprefix(f"{folder}/"): name for name in members.names() if is_shown_image(name)}
    if not paths:
        raise InputError(f"{members.path}: no image in it; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    if faults := collisions(paths):
        raise InputError(f"{members.path}: {first_few(faults)}")
    return [Row(record_id(path), name) for path, name in paths.items()]


def is_shown_image(name: str) -> bool:
    """Whether a member has the suffix of an image, and neither it nor a folder above it is hidden."""
    return is_image(name) and not any(part.startswith(".") for part in name.split("/"))


def names_by_stem(members: Members, suffix: str, folder: str = "") -> dict[str, str]:
    """Names of the files with a suffix, by stem. Hidden files are skipped.

    Args:
        members: The files.
        suffix: For example ".png".
        folder: Name of their folder; "" for any.

    Raises:
        InputError: There is no such file, or several have the same stem.
    """
    found: dict[str, str] = {}
    for name in members.names():
        path = PurePosixPath(name)
        if path.suffix.lower() != suffix or path.name.startswith(".") or folder not in ("", path.parent.name):
            continue
        if path.stem in found:
            raise InputError(f"{members.path}: {found[path.stem]} and {name} are for the same image; keep one of them")
        found[path.stem] = name
    if not found:
        raise InputError(f"{members.path}: holds no {folder or '.'}/*{suffix}; get it again from its source")
    return found


def _read_member(archive: Path, name: str) -> Content | BadFile:
    path = member_path(archive, name)
    try:
        return Content(path, opened_members(archive).read(name))
    except UnreadableError as error:
        return BadFile(path, reason(error, path))


def reason(error: UnreadableError, name: str) -> str:
    """The message of an error, without the name at its start."""
    return str(error).removeprefix(f"{name}: ")
