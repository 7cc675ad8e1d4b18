r"""Prepares a dataset on this machine as ArrayRecord shards of its encoded images. TensorFlow is not needed.

    python -m data_pipelines.prepare --dataset=voc2012_semi --out=data/shards --manual_dir=downloads
    python -m data_pipelines.prepare --dataset=pascal_context60 --out=data/shards --manual_dir=downloads
    python -m data_pipelines.prepare --dataset=coco_ood --out=data/shards
    python -m data_pipelines.prepare --dataset=image_folder --out=data/shards --source=photos
    python -m data_pipelines.prepare --dataset=webdataset_ood --out=data/shards --source='crawl/*.tar'

Archives that are not in `--manual_dir` are downloaded and verified. Labels must be in `--manual_dir`: they are
published without a checksum. The dataset is written to OUT/DATASET/VERSION, with the ids in the order of the examples
in `SPLIT.ids.txt`. Files that cannot be used are left out, counted, and listed in report.json. A killed command resumes
when it is run again (see `units`). An existing dataset is kept if it was made from the same source; otherwise it is an
error.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.builders.base import ImageBuilder, SourceBuilder
from data_pipelines.builders.downloads import download_config
from data_pipelines.builders.leakage import EvaluationImages
from data_pipelines.builders.report import Report
from data_pipelines.builders.samples import Unit
from data_pipelines.builders.units import (
    Preparation,
    finished_report,
    prepare_in_turn,
    recorded_metadata,
    remove_leftovers,
)
from data_pipelines.errors import InputError

DATASETS = ("voc2012_semi", "pascal_context60", "coco_ood", "image_folder", "webdataset_ood")

KEPT = "finished shards are kept; the same command prepares the others"  # after a signal


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
        folder: Its folder.
        report: Its numbers of images, and the files that were left out.
        reused: Whether it existed before.
    """

    folder: Path
    report: Report
    reused: bool

    def __str__(self) -> str:
        state = "already there, made from the same source" if self.reused else "prepared"
        return f"{self.folder}: {state}:\n{self.report.summary()}"


def make_builder(dataset: str, out: Path, source: str = "") -> ImageBuilder:
    """Makes the builder of a dataset.

    Args:
        dataset: One of DATASETS.
        out: Folder of all prepared datasets.
        source: The source to read, if the builder is a `SourceBuilder`.

    Raises:
        InputError: `source` is missing, or the dataset takes none.
    """
    module = importlib.import_module(f"data_pipelines.builders.{dataset}.{dataset}_dataset_builder")
    takes_source = issubclass(module.Builder, SourceBuilder)
    if takes_source != bool(source):
        fault = "set --source to the files of the dataset" if takes_source else "leave out --source"
        raise InputError(f"--dataset={dataset} --source={source}: {fault}")
    try:
        return module.Builder(data_dir=str(out), **({"source": source} if source else {}))
    except Exception as error:  # a damaged dataset is already there: several types
        folder = next((path.parent for path in (out / dataset).glob("*/dataset_info.json")), out / dataset)
        raise InputError(f"{folder}: cannot be read ({error}); remove it, or name another --out") from error


def open_preparation(
    builder: ImageBuilder, manual_dir: Path | None = None, evaluation: EvaluationImages | None = None
) -> tuple[Preparation, dict[str, list[Unit]]]:
    """Returns a preparation and the units of each split; raises `InputError` if the source cannot be used."""
    manager = _download_manager(builder, manual_dir)
    units = builder.units(manager)
    return Preparation(builder, Path(builder.data_path).absolute(), builder.origin(manager), evaluation), units


def prepare(builder: ImageBuilder, manual_dir: Path | None = None) -> Prepared:
    """Prepares a dataset, resumes its preparation, or keeps a finished dataset of the same source.

    Args:
        builder: The dataset's builder.
        manual_dir: Folder with downloaded archives.

    Raises:
        InputError: The source is missing or cannot be used, the folder has another dataset or cannot be written.
    """
    folder = Path(builder.data_path)
    try:
        if (report := finished_report(builder)) is None:
            return Prepared(folder, prepare_in_turn(*open_preparation(builder, manual_dir)), reused=False)
        _refuse_another_source(builder, manual_dir)
        remove_leftovers(folder)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be read or written ({error.strerror or error}); name an --out you may "
            "write to, with room for the dataset"
        ) from error
    return Prepared(folder, report, reused=True)


def _refuse_another_source(builder: ImageBuilder, manual_dir: Path | None) -> None:
    """Raises `InputError` if the prepared dataset was made from another source than the builder would use now."""
    made_from = recorded_metadata(builder).get("source")
    if not isinstance(made_from, Mapping):
        raise InputError(
            f"{builder.data_path}: is already there, without a record of its source; remove it, or name another --out"
        )
    if manual_dir is None and not isinstance(builder, SourceBuilder):
        return  # the archives may have been deleted since
    for role, wanted in builder.origin(_download_manager(builder, manual_dir)).items():
        if made_from.get(role) != wanted:
            raise InputError(
                f"{builder.data_path}: is already there, made from {made_from.get(role)}, not from {wanted}; remove "
                "it, or name another --out"
            )


def _download_manager(builder: ImageBuilder, manual_dir: Path | None) -> Any:
    if manual_dir is not None and not manual_dir.is_dir():
        raise InputError(f"--manual_dir={manual_dir}: no such folder; name the one that holds the archives")
    return builder._make_download_manager(download_dir=None, download_config=download_config(manual_dir))
