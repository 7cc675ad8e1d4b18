"""Images in tar shards as img2dataset writes them (WebDataset), as out-of-distribution images."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.builders.archives import tar_files
from data_pipelines.builders.base import SourceBuilder, checked_sample, is_shown_image, reason
from data_pipelines.builders.downloads import files_in
from data_pipelines.builders.samples import BadFile, Content, Sample, Unit
from data_pipelines.errors import InputError
from data_pipelines.sources.records import UnreadableError


class Builder(SourceBuilder):
    """One split, "train". The source is a folder of tar files, one tar file, or a pattern of them ("crawl/*.tar").

    A tar holds KEY.jpg (or another image suffix). KEY.txt and KEY.json are ignored.
    """

    VERSION = tfds.core.Version("1.0.0")

    def files(self) -> Sequence[Path]:
        """The tar files, sorted; raises `InputError` if there are none, or two have the same stem."""
        source = self.given()
        if source.is_dir():
            found = [path for path in files_in(source) if path.suffix == ".tar"]
        elif source.is_file():
            found = [source]
        else:
            found = sorted(Path(source.anchor).glob(str(source.relative_to(source.anchor))))
        if not found:
            raise InputError(f"--source={source}: no tar file; name a folder of them, or a pattern such as crawl/*.tar")
        by_stem: dict[str, Path] = {}
        for path in found:
            if (other := by_stem.setdefault(path.stem, path)) != path:
                raise InputError(
                    f"--source={source}: {other} and {path} have the same stem, with which ids begin; rename one, or "
                    "prepare them separately"
                )
        return found

    def units(self, dl_manager: Any) -> dict[str, list[Unit]]:
        """See the base class. Each tar is a unit. Ids are "TARSTEM/KEY", in the order of the tar."""
        return {"train": [Unit(str(path), functools.partial(tar_samples, path)) for path in self.files()]}


def tar_samples(path: Path) -> Iterator[Sample | BadFile]:
    """Yields the images of a tar file, in order. A damaged tar yields its complete images, then itself as a bad file.

    Raises:
        InputError: A member is unsafe.
    """
    seen = set()
    try:
        for file in tar_files(path):
            if not is_shown_image(file.name):
                continue
            name, key = f"{path}: {file.name}", member_key(file.name)
            if key in seen:
                yield BadFile(name, f"another image has the same key {key!r}")
                continue
            seen.add(key)
            yield checked_sample(f"{path.stem}/{key}", Content(name, file.read(path)))
        if not seen:
            yield BadFile(str(path), "holds no image")
    except UnreadableError as error:
        yield BadFile(str(path), reason(error, str(path)))


def member_key(name: str) -> str:
    """WebDataset's key of a member: its path up to the first dot of its name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))
