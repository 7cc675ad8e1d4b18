"""What the builders have in common: the features of an example, and from files to examples."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from data_pipelines.builders.archives import Members
from data_pipelines.errors import InputError
from data_pipelines.sources import IMAGE_SUFFIXES, collisions, first_few, is_image, record_id


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


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders: ArrayRecord files of encoded images in a fixed order, written and read without TensorFlow.

    An example holds `image` and, if LABELED, `label` (the bytes of the source's files: read them with
    `tfds.decode.SkipDecoding`), `id` (text) and `sha256` (of the image's bytes, hexadecimal).
    """

    LABELED = False

    def __init__(self, *, file_format: str = "array_record", **options: Any):
        super().__init__(file_format=file_format, **options)

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

    def _generate_examples(self, samples: Iterable[Sample]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, sample in enumerate(samples):
            example: dict[str, Any] = {
                "image": sample.image,
                "id": sample.id,
                "sha256": hashlib.sha256(sample.image).hexdigest(),
            }
            if self.LABELED:
                example["label"] = sample.label
            yield key, example


def image_samples(members: Members, folder: str = "") -> Iterator[Sample]:
    """Yields every image of an archive or folder, by suffix, sorted by name.

    Args:
        members: The files.
        folder: Path that ids leave out where names begin with it.

    Raises:
        InputError: There is no image, or several have the same id.
    """
    paths = {name.removeprefix(f"{folder}/"): name for name in members.names() if is_image(name)}
    if not paths:
        raise InputError(f"{members.path}: no image in it (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    if faults := collisions(paths):
        raise InputError(f"{members.path}: {first_few(faults)}")
    for path, name in paths.items():
        yield Sample(record_id(path), members.read(name))


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
