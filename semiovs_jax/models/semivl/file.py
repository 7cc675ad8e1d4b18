"""Weight file of a SemiVL student: its parameters, with the architecture."""

import functools

from flax import nnx

from semiovs_jax.models.functional import Functional, PyTree
from semiovs_jax.models.semivl.semivl import SemiVL, SemiVLConfig
from semiovs_jax.weights.keys import fill, flatten
from semiovs_jax.weights.parts import FileKind, config_from_json


def parameter_shapes(config: SemiVLConfig) -> PyTree:
    """Parameters as shapes; no value is computed. The position table is that of `config.visual.image_size`."""
    # Parameters do not depend on the number of classes.
    student = nnx.eval_shape(lambda: SemiVL(config, 1, image_size=config.visual.image_size[0], rngs=nnx.Rngs(0)))
    return Functional.create(student)[1]


SEMIVL = FileKind("semivl", functools.partial(config_from_json, SemiVLConfig), parameter_shapes)


def load_semivl(path: str) -> tuple[SemiVLConfig, PyTree]:
    """Reads a file of kind "semivl"; arguments and errors as `FileKind.load`.

    Returns:
      The architecture, and the parameters of its `SemiVL` for any number of classes. The embedded class names, which
      are the student's batch statistics, are not in the file.
    """
    config, tensors, _ = SEMIVL.load(path)
    return config, fill(parameter_shapes(config), flatten(tensors))
