"""Command that writes the embedded benchmark. See `benchmark`."""

import argparse
import dataclasses

from data_pipelines.command import command_end
from data_pipelines.files import expand
from data_pipelines.shapes.benchmark import ShapesSpec, write_shapes
from data_pipelines.shapes.drawing import SCENE_CLASSES


def main() -> None:
    """Command line: `--root`, `--seed`, and one flag for each field of `ShapesSpec`."""
    parser = argparse.ArgumentParser(description='Writes the embedded benchmark "shapes" in the layout of VOC.')
    parser.add_argument("--root", type=expand, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of every image")
    for field in dataclasses.fields(ShapesSpec):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help="default: %(default)s")
    flags = vars(parser.parse_args())
    root, seed = flags.pop("root"), flags.pop("seed")
    with command_end():
        write_shapes(root, ShapesSpec(**flags), seed)
    spec = ShapesSpec(**flags)
    print(
        f"{root}: {spec.labeled} labeled, {spec.unlabeled} unlabeled, {spec.val} validation and {spec.ood} "
        f"out-of-distribution images of {len(SCENE_CLASSES)} classes, distractors and background included"
    )


if __name__ == "__main__":
    main()
