r"""Prepares a dataset of any size with Apache Beam, without copies of evaluation images.

    python -m data_pipelines.prepare.beam --dataset=webdataset_ood --source='crawl/*.tar' --out=data/shards \
        --evaluation_root=data/pascal --evaluation_split=splits/val.txt

The result is the dataset of `data_pipelines.prepare`, with one shard for each unit (a tar, or 1,000 images). Bad files
and duplicates of evaluation images (see `leakage`) are left out, counted, and listed in
OUT/DATASET/VERSION/report.json. A killed command resumes when it is run again (see `units`).

`--beam_runner` and `--beam_options` are passed to Beam. To use several cores of this machine:

    --beam_options='--direct_running_mode=multi_processing --direct_num_workers=8'

To use many machines:

    --beam_runner=DataflowRunner --beam_options='--project=P --region=R --temp_location=gs://BUCKET/tmp'
    --beam_runner=FlinkRunner --beam_options='--flink_master=HOST:8081'
    --beam_runner=SparkRunner --beam_options='--spark_master_url=spark://HOST:7077'

They also need an image with this package and its extra `beam`: `--sdk_container_image`, or
`--environment_type=DOCKER --environment_config=IMAGE`. All workers must see the sources and OUT under the same paths as
the machine that starts them: on a network file system, or in a mounted bucket.
"""

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from data_pipelines.builders.leakage import DISTANCE, hash_evaluation_images
from data_pipelines.builders.report import Report
from data_pipelines.builders.samples import Unit
from data_pipelines.builders.units import Part, Preparation, begin, finish, prepare_part
from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from data_pipelines.files import expand
from data_pipelines.loading.streams import open_split
from data_pipelines.prepare.local import DATASETS, KEPT, make_builder, open_preparation


def prepare_on_beam(
    preparation: Preparation,
    units: Mapping[str, Sequence[Unit]],
    runner: str = "DirectRunner",
    options: Sequence[str] = (),
) -> Report:
    """Prepares a dataset, or resumes its preparation.

    Args:
        preparation: The dataset.
        units: The units of each split.
        runner: Name of a Beam runner.
        options: Options of Beam and its runner, `--NAME=VALUE`.

    Raises:
        InputError: See `begin` and `finish`; or Beam is not installed, or rejects the runner or its options.
    """
    parts = begin(preparation, units)
    total = sum(len(found) for found in units.values())
    print(f"{preparation.folder}: {len(parts)} of {total} units to prepare", file=sys.stderr)
    if parts:
        run_parts(functools.partial(prepare_part, preparation), parts, runner, options)
    return finish(preparation, units)


def run_parts(work: Callable[[Part], None], parts: Sequence[Part], runner: str, options: Sequence[str]) -> None:
    """Runs `work` on each part in Beam's workers, in any order, and waits for the end.

    Raises:
        InputError: Beam is not installed, or rejects the runner or its options.
    """
    try:
        import apache_beam as beam  # in the extra `beam`
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    except ImportError as error:
        raise InputError("Apache Beam is not installed; pip install 'semiovs-jax[beam]'") from error
    try:
        # Beam's DirectRunner is this runner, but it first tries to download another one.
        chosen = FnApiRunner() if runner == "DirectRunner" else beam.runners.create_runner(runner)
        pipeline = beam.Pipeline(runner=chosen, options=PipelineOptions(list(options)))
    except (ValueError, ImportError) as error:
        raise InputError(f"--beam_runner={runner} --beam_options={shlex.join(options)}: {error}") from error
    with pipeline:
        _ = pipeline | beam.Create(parts, reshuffle=False) | beam.Reshuffle() | beam.Map(work)


def _run(flags: argparse.Namespace) -> str:
    builder = make_builder(flags.dataset, flags.out, flags.source)
    evaluation = None
    if flags.evaluation_root or flags.evaluation_split:
        names = ("--evaluation_root", "--evaluation_split")
        source = open_split(flags.evaluation_root, flags.evaluation_split, names, with_labels=False)
        evaluation = hash_evaluation_images(source, flags.leakage_distance)
    preparation, units = open_preparation(builder, flags.manual_dir, evaluation)
    report = prepare_on_beam(preparation, units, flags.beam_runner, shlex.split(flags.beam_options))
    return f"{preparation.folder}:\n{report.summary()}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Prepares a dataset as ArrayRecord shards, with Apache Beam.")
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument(
        "--out", type=expand, required=True, help="folder to write DATASET/VERSION to; all workers see it"
    )
    parser.add_argument("--manual_dir", type=expand, help="folder with downloaded archives, or the folders in them")
    parser.add_argument("--source", default="", help="for image_folder: a folder or archive; for webdataset_ood: tars")
    parser.add_argument("--evaluation_root", default="", help="folder of evaluation images, or a prepared dataset")
    parser.add_argument("--evaluation_split", default="", help="list relative to --evaluation_root, or a split")
    parser.add_argument(
        "--leakage_distance",
        type=int,
        default=DISTANCE,
        help="bits of 64 in which the perceptual hash of a duplicate may differ; default: %(default)s",
    )
    parser.add_argument("--beam_runner", default="DirectRunner", help="default: %(default)s, on this machine")
    parser.add_argument("--beam_options", default="", help="options of Beam and its runner, in one string")
    flags = parser.parse_args()
    with command_end(KEPT):
        print(_run(flags))


if __name__ == "__main__":
    main()
