"""Compares runs: python -m semiovs_jax.compare runs/a runs/b runs/c --out=curves.png.

Prints a table of their scores, what differs in their configs, and why scores should not be compared, if there is a
reason. Runs that differ in the seed alone are summed up: mean and standard deviation. --out draws the mIoU and the loss
of all runs in one picture. Runs need not be finished. --pictures draws validation images that show every class beside
their ground truth and the predictions of each run's best checkpoint. The last line is the command that evaluates the
best run.
"""

import sys
from collections.abc import Sequence
from functools import partial

from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from data_pipelines.files import as_path
from semiovs_jax.runtime.arguments import make_parser, parse_arguments
from semiovs_jax.runtime.program import other_command


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("semiovs_jax.compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the workdir of a run")
    parser.add_argument(
        "--out", type=partial(as_path, field="--out"), metavar="FILE.png", help="picture of the curves to write"
    )
    parser.add_argument(
        "--pictures",
        type=partial(as_path, field="--pictures"),
        metavar="FILE.png",
        help="picture of predictions to write",
    )
    args = parse_arguments(parser, argv)
    from semiovs_jax.reporting import comparison

    for flag, path in (("--out", args.out), ("--pictures", args.pictures)):
        if path and path.suffix.lower() != ".png":
            raise InputError(f"{flag}={path}: the picture is a PNG file; name it {path.with_suffix('.png')}")
    runs = comparison.read_runs(list(dict.fromkeys(args.runs)))
    print(comparison.format_runs(runs))
    if len(runs) > 1:
        print(f"\n{comparison.format_differences(runs)}")
    for warning in comparison.warnings(runs):
        print(f"warning: {warning}", file=sys.stderr)
    if args.out:
        comparison.draw_comparison(runs, args.out)
        print(f"\nwrote {args.out}")
    if args.pictures:
        comparison.draw_pictures(runs, args.pictures)
        print(f"\nwrote {args.pictures}")
    if scores := [(run.best["miou"], run.name) for run in runs if run.best]:
        print(f"next: {other_command('evaluate', f'--workdir={max(scores)[1]}')}")


if __name__ == "__main__":
    with command_end():
        main()
