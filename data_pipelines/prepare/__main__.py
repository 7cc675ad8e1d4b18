"""Command that prepares a dataset as ArrayRecord shards on this machine. See `local`."""

import argparse
import sys

from data_pipelines.errors import InputError
from data_pipelines.files import expand
from data_pipelines.prepare.local import DATASETS, make_builder, prepare


def main() -> None:
    """Command line. An `InputError` ends it with its message and status 2."""
    parser = argparse.ArgumentParser(description="Prepares a dataset as ArrayRecord shards.")
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--out", type=expand, required=True, help="folder to write DATASET/VERSION to")
    parser.add_argument("--manual_dir", type=expand, help="folder with downloaded archives, or the folders in them")
    parser.add_argument("--source", default="", help="for image_folder: a folder or archive; for webdataset_ood: tars")
    flags = parser.parse_args()
    try:
        print(prepare(make_builder(flags.dataset, flags.out, flags.source), flags.manual_dir))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
