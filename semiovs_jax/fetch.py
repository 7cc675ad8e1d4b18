"""Downloads published weights: python -m semiovs_jax.fetch resnet101.

Without a name, it prints what there is. $SEMIOVS_MIRROR, a URL or a folder, replaces the host of every address. The
same command continues an interrupted download.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.command import command_end
from data_pipelines.errors import Faults, InputError
from data_pipelines.files import expand
from semiovs_jax.runtime.arguments import make_parser, parse_arguments
from semiovs_jax.runtime.program import complete_with, other_command
from semiovs_jax.weights.download import download
from semiovs_jax.weights.published import Published, PublishedFile, format_published, is_url, load_published, mirrored

_MIRROR = "SEMIOVS_MIRROR"


def fetch(entry: Published, folder: Path, mirror: str) -> None:
    """Downloads the files of `entry` to `folder`, and prints how far they are checked and how to convert them.

    Raises:
      InputError: as `download`; files that were downloaded are kept.
    """
    print(f"{entry.name}: license: {entry.license or 'not stated'}; see {entry.page}", flush=True)
    for name, file in entry.files.items():
        found = download(mirrored(file.url, name, mirror), folder / name, file.sha256, page=entry.page)
        print(f"{folder / name}: sha256 {found}, {_verdict(file)}", flush=True)
    source, out = folder / next(iter(entry.files)), folder / f"{entry.name}.safetensors"
    print(f"next: {other_command('convert', str(source), str(out), f'--kind={entry.kind}')}")


def _verdict(file: PublishedFile) -> str:
    if file.sha256 is None:
        return "not checked: no published one is known"
    return "as published" if len(file.sha256) == 64 else f"which begins with {file.sha256}, as published"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("semiovs_jax.fetch", __doc__)
    table, meaning = load_published(), "which weights; none: prints what there is"
    complete_with(parser.add_argument("names", nargs="*", metavar="NAME", help=meaning), lambda **_: table)
    parser.add_argument("--out", type=expand, default=Path("weights"), help="folder to write to; default: %(default)s")
    args = parse_arguments(parser, argv)
    mirror = os.environ.get(_MIRROR, "")
    if mirror and not is_url(mirror):
        mirror = str(expand(mirror))
    if unknown := [name for name in args.names if name not in table]:
        raise InputError(f"{', '.join(unknown)}: no such weights; name some of {', '.join(table)}")
    if not args.names:
        print(format_published(table, mirror))
        print(f"next: {other_command('fetch', 'NAME')}")
    faults = Faults()
    for name in dict.fromkeys(args.names):
        with faults.collected():
            fetch(table[name], args.out, mirror)
    faults.refuse()


if __name__ == "__main__":
    with command_end("downloaded bytes are kept; the same command continues"):
        main()
