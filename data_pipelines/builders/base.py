"""What the builders have in common: the parts a split is prepared in, and from files to examples."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import tensorflow_datasets as tfds
from absl import logging

from data_pipelines.builders.archives import Members, member_path, opened_members
from data_pipelines.builders.downloads import Archive, describe, locate, origin
from data_pipelines.builders.downloads import download_config as verified
from data_pipelines.decode import probe_image
from data_pipelines.errors import InputError
from data_pipelines.sources import IMAGE_SUFFIXES, UnreadableError, collisions, first_few, is_image, record_id

UNIT_IMAGES = 1000


class Sample(NamedTuple):
    """One image of a dataset.

    Attributes:
        id: As of `sources.Record`: the image's path in a folder of the same files, without suffix.
        image: The bytes of the encoded photograph.
        label: The bytes of the encoded label plane, if the dataset has labels.
    """

    id: str
    image: bytes
    label: bytes | None = None


class BadFile(NamedTuple):
    """A file that cannot be used.

    Attributes:
        name: As a person would look for it: a path, or "ARCHIVE: MEMBER".
        reason: What is wrong with it.
    """

    name: str
    reason: str


class Unit(NamedTuple):
    """A part of a split that is prepared at once, and becomes one shard where shards are prepared side by side.

    Attributes:
        name: For messages: a tar's path, or "FOLDER: images 0-999".
        samples: Reads the part. It can be pickled, and opens files only when called.
    """

    name: str
    samples: Callable[[], Iterator[Sample | BadFile]]


class Row(NamedTuple):
    """Where one image and its label lie.

    Attributes:
        id: The id of the sample.
        image: Name of a member.
        label: Name of a member of the labels, if the dataset has labels.
    """

    id: str
    image: str
    label: str | None = None


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders: ArrayRecord files of encoded images in a fixed order, written and read without TensorFlow.

    An example holds `image` and, if LABELED, `label` (the bytes of the source's files: read them with
    `tfds.decode.SkipDecoding`), `id` (text) and `sha256` (of the image's bytes, hexadecimal). Beside the shards of a
    split lie its ids (`ids_path`). `info.metadata` holds `source`, what it was made from (`origin`), and `bad`, the
    files left out and why.

    Attributes:
        LABELED: Whether the samples have labels.
        ARCHIVES: What the dataset is made from; of each entry one archive serves.
    """

    LABELED = False
    ARCHIVES: Mapping[str, Sequence[Archive]] = MappingProxyType({})

    def __init__(self, *, file_format: str = "array_record", **options: Any):
        super().__init__(file_format=file_format, **options)

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """The parts of each split, in a fixed order.

        Args:
            dl_manager: TensorFlow Datasets' download manager.

        Raises:
            InputError: The source is missing, is another than expected, or cannot be used.
        """
        raise NotImplementedError

    def locate(self, role: str, dl_manager: Any) -> Path:
        """An archive of ARCHIVES or the folder it was extracted to (see `downloads.locate`)."""
        return locate(self.ARCHIVES[role], dl_manager, self.url_infos)

    def origin(self, dl_manager: Any) -> dict[str, str]:
        """What the dataset would be made from, as far as that is known without downloading or reading it."""
        found = {role: origin(archives, dl_manager, self.url_infos) for role, archives in self.ARCHIVES.items()}
        return {role: text for role, text in found.items() if text is not None}

    def download_and_prepare(self, *, download_config: Any = None, **options: Any) -> None:
        """As of the base class; without a config, downloads are verified (see `downloads.download_config`)."""
        super().download_and_prepare(download_config=download_config or verified(), **options)

    def example(self, sample: Sample) -> dict[str, Any]:
        """A sample as the features of an example."""
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

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        units = self.units(dl_manager)
        self.info.metadata.update(source=self.origin(dl_manager), bad=[])
        return {split: self._generate_examples(split, parts) for split, parts in units.items()}

    def _generate_examples(self, split: str, units: Sequence[Unit]) -> Iterator[tuple[int, dict[str, Any]]]:
        bad = self.info.metadata["bad"]
        count = 0
        with ids_path(self.data_path, split).open("wb") as ids:
            for found in (found for unit in units for found in unit.samples()):
                if isinstance(found, BadFile):
                    logging.warning("%s: left out: %s", *found)
                    bad.append(found._asdict())
                    continue
                ids.write(id_line(found.id))
                yield count, self.example(found)
                count += 1
        if not count:
            refuse_empty(split, [BadFile(**file) for file in bad])


class SourceBuilder(ImageBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders that are told what to read.

    Attributes:
        source: What to read.
    """

    def __init__(self, *, source: str | Path = "", **options: Any):
        self.source = Path(source).expanduser().absolute() if source else None
        super().__init__(**options)

    def files(self) -> Sequence[Path]:
        """The files of the source, in a fixed order; raises `InputError` if there are none."""
        raise NotImplementedError

    def origin(self, dl_manager: Any) -> dict[str, str]:
        """The files of the source."""
        return {"source": describe(self.given(), self.files())}

    def given(self) -> Path:
        """The source; raises `InputError` if none was given."""
        if self.source is None:
            raise InputError(f"--source is empty: name what {self.name} is to be made from")
        return self.source


def ids_path(folder: Any, split: str) -> Any:
    """Where a prepared dataset keeps the ids of a split: one a line, in the order of its examples."""
    return folder / f"{split}.ids.txt"


def id_line(id_: str) -> bytes:
    """The line of an id in the file of `ids_path`; raises `InputError` if an id cannot be one."""
    if id_.splitlines() != [id_]:
        raise InputError(f"the id {id_!r} is empty or has a line break in it; rename the file")
    try:
        return f"{id_}\n".encode()
    except UnicodeEncodeError as error:  # names of files that are not UTF-8
        raise InputError(f"the id {id_!r} is not UTF-8; rename the file") from error


def refuse_empty(split: str, bad: Sequence[BadFile]) -> None:
    """Raises the `InputError` of a split without samples, which names the files that were left out."""
    faults = first_few([f"{file.name}: {file.reason}" for file in bad])
    raise InputError(f"the split {split!r} has no image that can be used: {faults or 'its archives are empty'}")


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """Encoded bytes that were read, as an `Encoded`."""

    name: str
    data: bytes

    def open(self) -> BinaryIO:
        """A stream over the bytes."""
        return io.BytesIO(self.data)

    def read(self) -> bytes:
        """The bytes."""
        return self.data


def checked_sample(id_: str, image: Content, label: Content | None = None) -> Sample | BadFile:
    """A sample, if its image and label are whole (see `decode.probe_image`) and its id can be one."""
    try:
        id_line(id_)
    except InputError as error:
        return BadFile(image.name, str(error))
    for content in (image, label) if label is not None else (image,):
        try:
            probe_image(content)
        except UnreadableError as error:
            return BadFile(content.name, reason(error, content.name))
    return Sample(id_, image.data, None if label is None else label.data)


def row_units(images: Path, rows: Sequence[Row], labels: Path | None = None) -> list[Unit]:
    """Units of `UNIT_IMAGES` rows each.

    Args:
        images: Archive or folder of the images.
        rows: In the order wanted.
        labels: Archive or folder of the labels.
    """
    units = []
    for start in range(0, len(rows), UNIT_IMAGES):
        part = tuple(rows[start : start + UNIT_IMAGES])
        name = f"{images}: images {start}-{start + len(part) - 1}"
        units.append(Unit(name, functools.partial(read_rows, images, part, labels)))
    return units


def read_rows(images: Path, rows: Sequence[Row], labels: Path | None = None) -> Iterator[Sample | BadFile]:
    """Reads images and labels one after the other; arguments as of `row_units`."""
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
    """Every image of an archive or folder, by suffix, sorted by name; those in hidden folders are left out.

    Args:
        members: The files.
        folder: Path that ids leave out where names begin with it.

    Raises:
        InputError: There is no image, or several have the same id.
    """
    paths = {name.removeprefix(f"{folder}/"): name for name in members.names() if is_shown_image(name)}
    if not paths:
        raise InputError(f"{members.path}: no image in it (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    if faults := collisions(paths):
        raise InputError(f"{members.path}: {first_few(faults)}")
    return [Row(record_id(path), name) for path, name in paths.items()]


def is_shown_image(name: str) -> bool:
    """Whether a member is an image, by its suffix, and neither it nor a folder above it is hidden."""
    return is_image(name) and not any(part.startswith(".") for part in name.split("/"))


def names_by_stem(members: Members, suffix: str, folder: str = "") -> dict[str, str]:
    """Names of the files with a suffix, by their stems.

    Args:
        members: The files; hidden ones are left out.
        suffix: Such as ".png".
        folder: Name of the folder that they must lie in; "" for any.

    Raises:
        InputError: There is none, or several have the same stem.
    """
    found: dict[str, str] = {}
    for name in members.names():
        path = PurePosixPath(name)
        if path.suffix.lower() != suffix or path.name.startswith(".") or folder not in ("", path.parent.name):
            continue
        if path.stem in found:
            raise InputError(
                f"{members.path}: {found[path.stem]} and {name} stand for the same image; keep one of them"
            )
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
    """The message of an error without the name that it begins with."""
    return str(error).removeprefix(f"{name}: ")
