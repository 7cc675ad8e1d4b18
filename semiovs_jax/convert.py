"""Converts published weights: `python -m semiovs_jax.convert SOURCE OUT.safetensors --kind=resnet`.

SOURCE is a PyTorch file (.pth, .pt; needs the extra `convert`) or a .safetensors file. The conversion is strict: it
uses every tensor, or drops it by a rule for its name. This command prints the dropped names.
"""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from data_pipelines.files import expand
from semiovs_jax import models
from semiovs_jax.runtime.program import other_command, program
from semiovs_jax.weights.files import file_sha256, save_weights
from semiovs_jax.weights.keys import Converted, Converter
from semiovs_jax.weights.state_dicts import read_state_dict


def find_converters(package: ModuleType = models) -> dict[str, Converter]:
    """The converters of all kinds: the tables `KINDS` of the modules `params` and `*_params` below `package`.

    Raises:
      ValueError: Two modules have the same kind.
    """
    found: dict[str, Converter] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not info.name.endswith((".params", "_params")):
            continue
        for kind, converter in getattr(importlib.import_module(info.name), "KINDS", {}).items():
            if kind in found:
                raise ValueError(f"{info.name}: KINDS has {kind!r}, as {found[kind].__module__}; rename one of them")
            found[kind] = converter
    return found


def convert_file(source: Path, out: Path, kind: str, converter: Converter) -> Converted:
    """Converts `source` to the weight file `out`.

    Args:
      source: Published weights.
      out: Weight file to write, with `kind`, `source` (a file name) and `source_sha256` in its metadata.
      kind: Name of the converter.
      converter: Renames the tensors.

    Raises:
      InputError: `source` cannot be read, or is not exactly a model of this kind.
    """
    converted = converter(read_state_dict(source), str(source))
    provenance = {"kind": kind, "source": source.name, "source_sha256": file_sha256(source)}
    save_weights(out, converted.values, {**converted.metadata, **provenance})
    return converted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    converters = find_converters()
    description = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog=program("semiovs_jax.convert"), description=description)
    parser.add_argument("source", type=expand, help="published weights")
    parser.add_argument("out", type=expand, help="weight file to write (.safetensors)")
    parser.add_argument("--kind", required=True, choices=sorted(converters))
    args = parser.parse_args(argv)
    try:
        converted = convert_file(args.source, args.out, args.kind, converters[args.kind])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in converted.dropped:
        print(f"dropped {name}")
    size = sum(value.size for value in converted.values.values())
    print(f"{args.out}: {len(converted.values)} tensors, {size:,} numbers; {len(converted.dropped)} dropped")
    command = other_command("check_data", "--config=FILE", f"--config.KEY.weights={args.out}")
    print(f"next: {command}, with KEY model (backbones, students), ovs (models that label) or clip")
    return 0


if __name__ == "__main__":
    with command_end():
        sys.exit(main())
