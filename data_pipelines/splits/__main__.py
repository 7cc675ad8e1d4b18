"""Command that writes split lists. See `lists`."""

import argparse

import pooch

from data_pipelines.command import command_end
from data_pipelines.datasets import DatasetInfo, dataset_info
from data_pipelines.files import expand
from data_pipelines.splits.lists import DrawnSplit, make_split, write_lists
from data_pipelines.splits.published import load_published, read_lists


def _class_table(split: DrawnSplit, info: DatasetInfo) -> str:
    rows = [("labeled", "of", "class"), *zip(split.labeled, split.listed, info.classes, strict=True)]
    return "\n".join(f"{labeled!s:>7} {listed!s:>7}  {name}" for labeled, listed, name in rows)


def _run(flags: argparse.Namespace) -> None:
    if flags.make_split is not None:
        info = dataset_info(flags.dataset)
        split = make_split(flags.root, flags.list, info, flags.make_split, flags.seed)
        contents = split.lists
        print(_class_table(split, info))
    else:
        published = load_published(flags.dataset)
        print(f"{len(published.lists)} lists of {published.repository} at {published.revision}, {published.folder}")
        contents = read_lists(published, flags.from_folder)
    written = write_lists(flags.out, contents)
    print(f"{flags.out}: {written} lists written, {len(contents) - written} already there")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Writes published split lists, or a class-balanced draw.")
    parser.add_argument("--dataset", required=True, help="voc2012 or context60; with --make_split a dataset file")
    parser.add_argument("--out", type=expand, required=True, help="folder to write the lists to")
    parser.add_argument("--from_folder", type=expand, help="read the published lists here instead of downloading them")
    parser.add_argument("--make_split", type=int, metavar="N", help="draw N labeled images of --list")
    parser.add_argument("--seed", type=int, default=0, help="for --make_split; default: %(default)s")
    parser.add_argument("--root", default="", help="for --make_split: folder of the images and labels")
    parser.add_argument("--list", default="", help="for --make_split: list of `IMAGE LABEL` lines, relative to --root")
    flags = parser.parse_args()
    if flags.make_split is None and (flags.root or flags.list or flags.seed):
        parser.error("--root, --list and --seed need --make_split")
    if flags.make_split is not None and flags.from_folder:
        parser.error("--from_folder cannot be combined with --make_split")
    pooch.get_logger().setLevel("WARNING")  # no log line for each list
    with command_end("lists that are written are kept; the same command writes the others"):
        _run(flags)


if __name__ == "__main__":
    main()
