"""Weight file of a DeepLabV3+ student: parameters and running statistics, with the architecture."""

import functools
from dataclasses import dataclass
from typing import Any

from flax import nnx

from semiovs_jax.models.deeplab.architecture import Architecture
from semiovs_jax.models.functional import Functional, PyTree
from semiovs_jax.weights.keys import fill, flatten
from semiovs_jax.weights.parts import FileKind, config_from_json


@dataclass(frozen=True)
class DeepLabConfig:
    """Architecture of a student and the number of its classes."""

    architecture: Architecture
    num_classes: int

    def collections(self) -> tuple[PyTree, PyTree]:
        """Parameters and running statistics as shapes; no value is computed."""
        student = nnx.eval_shape(lambda: self.architecture.build(self.num_classes, rngs=nnx.Rngs(0)))
        _, params, batch_stats = Functional.create(student)
        return params, batch_stats


def tensor_shapes(config: DeepLabConfig) -> dict[str, Any]:
    """Shapes by "/" path of parameters and running statistics, which have no path in common."""
    params, batch_stats = config.collections()
    return flatten(params) | flatten(batch_stats)


DEEPLAB = FileKind("deeplab", functools.partial(config_from_json, DeepLabConfig), tensor_shapes)


def load_deeplab(path: str) -> tuple[DeepLabConfig, PyTree, PyTree]:
    """Reads a file of kind "deeplab"; arguments and errors as `FileKind.load`.

    Returns:
      The configuration, the parameters and the running statistics of `architecture.build(num_classes)`.
    """
    config, tensors, _ = DEEPLAB.load(path)
    params, batch_stats = config.collections()
    values = flatten(tensors)
    return config, fill(params, values), fill(batch_stats, values)
