"""Converts published weights: `python -m semiovs_jax.convert SOURCE OUT.safetensors --kind=resnet`.

SOURCE is a PyTorch file (.pth, .pt; needs the extra `convert`) or a .safetensors file. The conversion is strict:
every tensor is used, or dropped by a name that the rules know and this command prints.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import file_sha256, save_weights
from semiovs_jax.weights.keys import Converted
from semiovs_jax.weights.state_dicts import read_state_dict

# Module and function (source, name) -> Converted of each kind; imported when asked for.
KINDS = {
    "clip": ("semiovs_jax.models.clip.params", "convert_clip"),
    "clip_visual": ("semiovs_jax.models.semivl.params", "convert_clip_visual"),
    "resnet": ("semiovs_jax.models.deeplab.params", "convert_resnet"),
    "sed": ("semiovs_jax.models.sed.params", "convert_sed"),
}


def convert_file(source: Path, out: Path, kind: str) -> Converted:
    """Converts `source` to the weight file `out`.

    Args:
      source: Published weights.
      out: Written as `weights.save_weights` does, with kind, source (its file name) and source_sha256 as metadata.
      kind: A key of KINDS.

    Raises:
      InputError: `source` cannot be read, or is not exactly a model of this kind.
    """
    module, function = KINDS[kind]
    converted = getattr(importlib.import_module(module), function)(read_state_dict(source), str(source))
    provenance = {"kind": kind, "source": source.name, "source_sha256": file_sha256(source)}
    save_weights(out, converted.values, {**converted.metadata, **provenance})
    return converted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m semiovs_jax.convert",
        description=(__doc__ or "").partition("\n\n")[2],
    )
    parser.add_argument("source", type=Path, help="published weights")
    parser.add_argument("out", type=Path, help="weight file to write (.safetensors)")
    parser.add_argument("--kind", required=True, choices=sorted(KINDS))
    args = parser.parse_args(argv)
    try:
        converted = convert_file(args.source, args.out, args.kind)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in converted.dropped:
        print(f"dropped {name}")
    size = sum(value.size for value in converted.values.values())
    print(f"{args.out}: {len(converted.values)} tensors, {size:,} numbers; {len(converted.dropped)} dropped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
