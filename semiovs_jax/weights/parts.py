"""Weight files with an architecture: its configuration is JSON in the metadata, its tensors are checked on reading."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import jax
from flax import nnx

from data_pipelines.errors import InputError
from data_pipelines.files import as_path
from semiovs_jax.weights.files import load_weights, read_metadata, save_weights
from semiovs_jax.weights.keys import flatten, match_exactly, unflatten

Config = TypeVar("Config")
PartShapes = dict[str, dict[str, jax.ShapeDtypeStruct]]

_SHIPPED = Path(__file__).parent / "shipped"


def weights_path(name_or_path: str) -> Path:
    """The file of shipped weights ("shapes_clip"), or the path itself."""
    shipped = _SHIPPED / f"{name_or_path}.safetensors"
    return shipped if shipped.is_file() else as_path(name_or_path, "weights")


def missing_weights(key: str, name_or_path: str, kind: str, *, source: str, otherwise: str = "") -> str | None:
    """What to do about a weight file that is missing; None if it is there.

    Args:
      key: the config key that names it.
      name_or_path: its value.
      kind: `--kind` of the conversion.
      source: which published weights to fetch: "fetch ...".
      otherwise: what to do without the weights; "" if there is nothing.
    """
    if weights_path(name_or_path).is_file():
        return None
    convert = f"python -m semiovs_jax.convert SOURCE {name_or_path or 'OUT.safetensors'} --kind={kind}"
    fault = (
        f"{key}={name_or_path!r}: no such file; {source} (see python -m semiovs_jax.fetch), and convert it with "
        f"{convert}"
    )
    return f"{fault}, or {otherwise}" if otherwise else fault


def weights_kind(name_or_path: str) -> str:
    """The kind of shipped weights or of a weight file, "" if it has none; raises InputError as `load_weights`."""
    return load_weights(weights_path(name_or_path))[1].get("kind", "")


def stored_sha256(name_or_path: str) -> str:
    """The digest of the tensors, from the header of shipped weights or of a weight file; raises as `read_metadata`."""
    return read_metadata(weights_path(name_or_path)).get("sha256", "")


def part_shapes(parts: Mapping[str, Callable[[], nnx.Module]]) -> PartShapes:
    """Shapes of the parameters by part and "/" path. The modules are only traced: no parameter is computed."""
    modules = {name: nnx.eval_shape(make) for name, make in parts.items()}
    return {name: flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param))) for name, module in modules.items()}


def config_to_json(config: Any) -> str:
    """One line of JSON of a dataclass, which `config_from_json` reads."""
    return json.dumps(dataclasses.asdict(config))


def config_from_json(config_type: type[Config], text: str) -> Config:
    """Reads a dataclass that `config_to_json` wrote; see `read_config`."""
    return read_config(config_type, json.loads(text))


def read_config(config_type: type[Config], content: Any) -> Config:
    """Builds a dataclass from decoded JSON.

    Args:
      config_type: Its fields that are annotated with a dataclass are built from objects.
      content: Object with the fields. Lists become tuples.

    Raises:
      KeyError, TypeError, ValueError: `content` is no object, or has other fields.
    """
    types = get_type_hints(config_type)

    def field(name: str, value: Any) -> Any:
        if dataclasses.is_dataclass(types.get(name)):
            return read_config(types[name], value)
        return tuple(value) if isinstance(value, list) else value

    return config_type(**{name: field(name, value) for name, value in dict(content).items()})


@dataclasses.dataclass(frozen=True)
class FileKind(Generic[Config]):
    """One kind of weight file: how it stores its configuration, and which tensors it must hold.

    Attributes:
      kind: `kind` of the metadata, and `--kind` of the conversion.
      read: Reads a configuration from JSON; raises KeyError, TypeError or ValueError if the text is invalid.
      shapes: All tensors of a configuration, nested or by "/" path, as leaves with a `shape`.
      write: Writes a configuration as JSON.
    """

    kind: str
    read: Callable[[str], Config]
    shapes: Callable[[Config], Mapping[str, Any]]
    write: Callable[[Config], str] = config_to_json

    def metadata(self, config: Config) -> dict[str, str]:
        """The entries of a file's metadata that `load` reads."""
        return {"kind": self.kind, "config": self.write(config)}

    def save(self, path: str | Path, config: Config, tensors: Mapping[str, Any], provenance: Mapping[str, str]) -> None:
        """Writes a file that `load` reads.

        Args:
          path: The .safetensors file to write.
          config: Architecture and settings.
          tensors: All tensors, nested or by "/" path; a model of several parts has them below `visual`, `text` etc.
          provenance: The origin of the weights, added to the metadata.

        Raises:
          InputError: The file cannot be written.
        """
        save_weights(path, flatten(tensors), {**provenance, **self.metadata(config)})

    def load(self, name_or_path: str) -> tuple[Config, dict[Any, Any], str]:
        """Reads a model in float32; half precision in the file is widened.

        Args:
          name_or_path: Name of shipped weights, or path of a file that `save` or the conversion wrote.

        Returns:
          The configuration, the tensors as nested dicts, and the SHA-256 digest of all tensors.

        Raises:
          InputError: The file is missing, damaged or of another kind, or its tensors are not exactly those of the
            architecture in its metadata.
        """
        path = weights_path(name_or_path)
        tensors, metadata = load_weights(path)
        config = self._config(path, metadata)
        values = match_exactly(tensors, flatten(self.shapes(config)), name=str(path))
        return config, unflatten(values), metadata["sha256"]

    def load_config(self, name_or_path: str) -> Config:
        """Reads the configuration alone, from the file's header.

        Args:
          name_or_path: Name of shipped weights, or path of a file.

        Raises:
          InputError: The file is missing, no weight file, or of another kind.
        """
        path = weights_path(name_or_path)
        return self._config(path, read_metadata(path))

    def _config(self, path: Path, metadata: Mapping[str, str]) -> Config:
        if metadata.get("kind") != self.kind:
            raise InputError(
                f"{path}: holds weights of kind {metadata.get('kind')!r}, not {self.kind!r}; convert weights with "
                f"`python -m semiovs_jax.convert SOURCE OUT --kind={self.kind}`"
            )
        try:
            return self.read(metadata["config"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: its metadata has no architecture of kind {self.kind!r} that this version can read ({error}); "
                "convert the weights again"
            ) from error
