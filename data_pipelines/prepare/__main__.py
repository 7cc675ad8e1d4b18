"""Command that prepares a dataset as ArrayRecord shards on this machine. See `local`."""

import argparse

from data_pipelines.command import command_end
from data_pipelines.files import expand
from data_pipelines.prepare.local import DATASETS, KEPT, make_builder, prepare


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Prepares a dataset as ArrayRecord shards.")
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--out", type=expand, required=True, help="folder to write DATASET/VERSION to")
    parser.add_argument("--manual_dir", type=expand, help="folder with downloaded archives, or the folders in them")
    parser.add_argument("--source", default="", help="for image_folder: a folder or archive; for webdataset_ood: tars")
    flags = parser.parse_args()
    with command_end(KEPT):
        print(prepare(make_builder(flags.dataset, flags.out, flags.source), flags.manual_dir))


if __name__ == "__main__":
    main()
