"""Command that writes the embedded benchmark. See `benchmark`."""

import argparse
import dataclasses

from data_pipelines.command import command_end
from data_pipelines.files import expand
from data_pipelines.shapes.benchmark import ShapesSpec, StartSpec, write_shapes, write_start
from data_pipelines.shapes.drawing import SCENE_CLASSES


def main() -> None:
    """Command line: `--root`, `--seed`, `--start`, and one flag for each field of the spec."""
    parser = argparse.ArgumentParser(description='Writes the embedded benchmark "shapes" in the layout of VOC.')
    parser.add_argument("--root", type=expand, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of every image")
    parser.add_argument("--start", action="store_true", help="images for the start of students instead: shapes_start")
    for field in dataclasses.fields(ShapesSpec):
        parser.add_argument(f"--{field.name}", type=int, help=f"default: {field.default}")
    flags = vars(parser.parse_args())
    root, seed, start = (flags.pop(name) for name in ("root", "seed", "start"))
    sizes = {name: value for name, value in flags.items() if value is not None}
    if start:
        names = [field.name for field in dataclasses.fields(StartSpec)]
        if others := sizes.keys() - set(names):
            parser.error(f"--start has the sizes {', '.join(names)}, not {', '.join(sorted(others))}")
        start_spec = StartSpec(**sizes)
        with command_end():
            write_start(root, start_spec, seed)
        print(f"{root}: {start_spec.labeled} labeled and {start_spec.val} validation images of other classes")
        return
    spec = ShapesSpec(**sizes)
    with command_end():
        write_shapes(root, spec, seed)
    print(
        f"{root}: {spec.labeled} labeled, {spec.unlabeled} unlabeled, {spec.val} validation and {spec.ood} "
        f"out-of-distribution images of {len(SCENE_CLASSES)} classes, distractors and background included"
    )


if __name__ == "__main__":
    main()
