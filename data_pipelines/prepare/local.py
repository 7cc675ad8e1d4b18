r"""Prepares a dataset as ArrayRecord shards of the encoded images, with TensorFlow Datasets and without TensorFlow.

    python -m data_pipelines.prepare --dataset=voc2012_semi --out=data/shards --manual_dir=downloads
    python -m data_pipelines.prepare --dataset=pascal_context60 --out=data/shards --manual_dir=downloads
    python -m data_pipelines.prepare --dataset=coco_ood --out=data/shards
    python -m data_pipelines.prepare --dataset=image_folder --out=data/shards --source=photos
    python -m data_pipelines.prepare --dataset=webdataset_ood --out=data/shards --source='crawl/*.tar'

What is not in `--manual_dir` is downloaded and verified, but for labels, which are only published where no checksum is.
The dataset lies in OUT/DATASET/VERSION, whole or not at all, beside `SPLIT.ids.txt`, the ids in the order of the
examples. Files that cannot be used are left out, counted and listed (`bad` in its metadata.json). A dataset that is
there already is kept if it was made from the same, and refused if it was not.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

from data_pipelines.builders.base import BadFile, ImageBuilder, SourceBuilder
from data_pipelines.builders.downloads import download_config
from data_pipelines.errors import InputError

DATASETS = ("voc2012_semi", "pascal_context60", "coco_ood", "image_folder", "webdataset_ood")
_LISTED = 20


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
        folder: Where it lies.
        counts: Number of examples by split.
        size: Bytes of all examples.
        bad: Files that were left out.
        reused: Whether it was there already.
    """

    folder: Path
    counts: dict[str, int]
    size: int
    bad: list[BadFile]
    reused: bool


def make_builder(dataset: str, out: Path, source: str = "") -> ImageBuilder:
    """The builder of one of DATASETS.

    Args:
        dataset: Its name.
        out: Folder that the dataset's own lies in.
        source: What to read, for a `SourceBuilder`.

    Raises:
        InputError: `source` is missing, or has no effect.
    """
    module = importlib.import_module(f"data_pipelines.builders.{dataset}.{dataset}_dataset_builder")
    takes_source = issubclass(module.Builder, SourceBuilder)
    if takes_source != bool(source):
        fault = "name with --source what it is to be made from" if takes_source else "leave out --source"
        raise InputError(f"--dataset={dataset} --source={source}: {fault}")
    try:
        return module.Builder(data_dir=str(out), **({"source": source} if source else {}))
    except (OSError, ValueError) as error:  # of a dataset that is there and damaged
        raise InputError(f"{out / dataset}: cannot be read ({error}); remove it, or name another --out") from error


def prepare(builder: ImageBuilder, manual_dir: Path | None = None) -> Prepared:
    """Prepares a dataset, or finds that it is there already, made from the same.

    Args:
        builder: The dataset's builder.
        manual_dir: Folder of archives that are there already.

    Raises:
        InputError: The source is missing or cannot be used, another dataset is there, or it cannot be written.
    """
    if manual_dir is not None and not manual_dir.is_dir():
        raise InputError(f"--manual_dir={manual_dir}: no such folder; name the one that holds the archives")
    reused = builder.data_path.exists()
    try:
        if reused:
            _refuse_another_source(builder, manual_dir)
        else:
            builder.download_and_prepare(download_config=download_config(manual_dir))
    except OSError as error:
        raise InputError(
            f"{error.filename or builder.data_path}: cannot be read or written ({error.strerror or error}); name an "
            "--out you may write to, with room for the dataset"
        ) from error
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    bad = [BadFile(**file) for file in builder.info.metadata["bad"]]
    return Prepared(Path(builder.data_path), counts, int(builder.info.dataset_size), bad, reused)


def _refuse_another_source(builder: ImageBuilder, manual_dir: Path | None) -> None:
    """Raises `InputError` if the prepared dataset was not made from what the builder would take now."""
    made_from = dict(builder.info.metadata or {}).get("source")
    if made_from is None:
        raise InputError(
            f"{builder.data_path}: is there already and does not say what it was made from; remove it, or name another "
            "--out"
        )
    if manual_dir is None and not isinstance(builder, SourceBuilder):
        return  # what was in --manual_dir may be gone
    manager = builder._make_download_manager(download_dir=None, download_config=download_config(manual_dir))
    for role, wanted in builder.origin(manager).items():
        if made_from.get(role) != wanted:
            raise InputError(
                f"{builder.data_path}: is there already, made from {made_from.get(role)}, not from {wanted}; remove "
                "it, or name another --out"
            )


def _report(prepared: Prepared) -> str:
    counts = ", ".join(f"{split} {count:,}" for split, count in prepared.counts.items())
    state = "there already, made from the same" if prepared.reused else "prepared"
    lines = [
        f"{prepared.folder}: {state}: images: {counts}; {prepared.size:,} bytes; bad files: {len(prepared.bad):,}",
        *(f"  {file.name}: {file.reason}" for file in prepared.bad[:_LISTED]),
    ]
    if len(prepared.bad) > _LISTED:
        lines.append(f"  and {len(prepared.bad) - _LISTED:,} more: 'bad' in {prepared.folder / 'metadata.json'}")
    return "\n".join(lines).encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
