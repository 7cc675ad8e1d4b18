"""Converts published weights: python -m semiovs_jax.convert SOURCE OUT.safetensors --kind=resnet.

SOURCE is a PyTorch file (.pth, .pt; needs the extra `convert`) or a .safetensors file. The conversion is strict: it
uses every tensor, or drops it by a rule for its name. This command prints the dropped names.
"""

import functools
import importlib
import pkgutil
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from data_pipelines.command import command_end
from data_pipelines.errors import InputError
from data_pipelines.files import as_path, expand
from semiovs_jax.runtime.arguments import make_parser, parse_arguments
from semiovs_jax.runtime.program import other_command

if TYPE_CHECKING:
    from semiovs_jax.weights.keys import Converted, Converter


def find_converters(package: ModuleType | None = None) -> "dict[str, Converter]":
    """The converters of all kinds: the tables `KINDS` of the modules `params` and `*_params` below a package.

    Args:
      package: `semiovs_jax.models` if None.

    Raises:
      ValueError: Two modules have the same kind.
    """
    package = package or importlib.import_module("semiovs_jax.models")
    found: dict[str, Converter] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not info.name.endswith((".params", "_params")):
            continue
        for kind, converter in getattr(importlib.import_module(info.name), "KINDS", {}).items():
            if kind in found:
                raise ValueError(f"{info.name}: KINDS has {kind!r}, as {found[kind].__module__}; rename one of them")
            found[kind] = converter
    return found


def convert_file(source: Path, out: Path, kind: str, converter: "Converter") -> "Converted":
    """Converts `source` to the weight file `out`.

    Args:
      source: Published weights.
      out: Weight file to write, with `kind`, `source` (a file name) and `source_sha256` in its metadata.
      kind: Name of the converter.
      converter: Renames the tensors.

    Raises:
      InputError: `source` cannot be read, or is not exactly a model of this kind.
    """
    from semiovs_jax.weights.files import file_sha256, save_weights
    from semiovs_jax.weights.state_dicts import read_state_dict

    converted = converter(read_state_dict(source), str(source))
    provenance = {"kind": kind, "source": source.name, "source_sha256": file_sha256(source)}
    save_weights(out, converted.values, {**converted.metadata, **provenance})
    return converted


class _Kinds(Collection[str]):
    """The names of all converters, which are imported with the first use: they need JAX, other flags do not."""

    @functools.cached_property
    def converters(self) -> "dict[str, Converter]":
        return dict(sorted(find_converters().items()))

    def __contains__(self, name: object) -> bool:
        return name in self.converters

    def __iter__(self) -> Iterator[str]:
        return iter(self.converters)

    def __len__(self) -> int:
        return len(self.converters)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    kinds = _Kinds()
    parser = make_parser("semiovs_jax.convert", __doc__)
    parser.add_argument("source", type=expand, help="published weights")
    parser.add_argument("out", type=partial(as_path, field="OUT"), help="weight file to write (.safetensors)")
    parser.add_argument("--kind", required=True, help="which model the weights are of").choices = kinds
    args = parse_arguments(parser, argv)
    try:
        converted = convert_file(args.source, args.out, args.kind, kinds.converters[args.kind])
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
