"""Models of several parts (towers, an aggregator) in one file, with the JSON that tells how to run them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx

from data_pipelines.errors import InputError
from semiovs_jax.weights.files import load_weights, save_weights
from semiovs_jax.weights.keys import Rule, convert, flatten, unflatten

Config = TypeVar("Config")
PartShapes = dict[str, dict[str, jax.ShapeDtypeStruct]]

_SHIPPED = Path(__file__).parent / "shipped"


def weights_path(name_or_path: str) -> Path:
    """The file of shipped weights ("shapes_clip"), or the path itself."""
    shipped = _SHIPPED / f"{name_or_path}.safetensors"
    return shipped if shipped.is_file() else Path(name_or_path)


def weights_kind(name_or_path: str) -> str:
    """What shipped weights or a weight file hold, "" if they do not say; raises InputError as `load_weights`."""
    return load_weights(weights_path(name_or_path))[1].get("kind", "")


def part_shapes(parts: Mapping[str, Callable[[], nnx.Module]]) -> PartShapes:
    """Shapes of the parameters by part and "/" path, of modules that are only described, never computed."""
    modules = {name: nnx.eval_shape(make) for name, make in parts.items()}
    return {name: flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param))) for name, module in modules.items()}


def flatten_parts(parts: Mapping[str, Mapping[Any, Any]]) -> dict[str, Any]:
    """Leaves of all parts, each nested or by "/" path, by "part/path"."""
    return {f"{name}/{path}": leaf for name, part in parts.items() for path, leaf in flatten(part).items()}


def save_parts(
    path: str | Path,
    kind: str,
    config: str,
    parts: Mapping[str, Mapping[Any, Any]],
    provenance: Mapping[str, str],
) -> None:
    """Writes a file that `load_parts` reads.

    Args:
      path: the .safetensors file to write.
      kind: what the file holds, as `--kind` of the conversion.
      config: JSON of the architecture and settings.
      parts: parameters by part, nested or by "/" path.
      provenance: where the weights come from, added to the metadata.
    """
    save_weights(path, flatten_parts(parts), {**provenance, "kind": kind, "config": config})


def load_parts(
    name_or_path: str,
    kind: str,
    read_config: Callable[[str], Config],
    shapes_of: Callable[[Config], PartShapes],
) -> tuple[Config, dict[str, dict[Any, Any]], str]:
    """Reads a model, float32 whatever the file's precision.

    Args:
      name_or_path: name of shipped weights or path of a file that `save_parts` wrote.
      kind: what the file must hold.
      read_config: from the JSON of the metadata; raises KeyError, TypeError or ValueError on any other.
      shapes_of: the parameters such a model has.

    Returns:
      The configuration, the parameters by part as pure dicts, and the digest of all tensors.

    Raises:
      InputError: the file is missing, damaged or of another kind, or its tensors are not those of the
        architecture its metadata gives.
    """
    path = weights_path(name_or_path)
    tensors, metadata = load_weights(path)
    if metadata.get("kind") != kind:
        raise InputError(
            f"{path}: holds weights of kind {metadata.get('kind')!r}, not {kind!r}; make them with "
            f"`python -m semiovs_jax.convert SOURCE OUT --kind={kind}`"
        )
    try:
        config = read_config(metadata["config"])
        shapes = shapes_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: its metadata gives no architecture of kind {kind!r} this version knows ({error}); "
            "convert the weights again"
        ) from error
    values = convert(tensors, [Rule(r"(.*)", r"\1")], flatten_parts(shapes), name=str(path)).values
    return config, unflatten(values), metadata["sha256"]
