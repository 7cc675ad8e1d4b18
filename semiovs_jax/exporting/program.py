"""The function that programs are made of: from images to labels, their confidence, and logits."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from semiovs_jax.augment import as_float, normalize
from semiovs_jax.exporting.model import TrainedModel

_logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Outputs of a program, arrays of JAX or NumPy.

    Attributes:
      label: uint8 [N, H, W], index of the class.
      confidence: float32 [N, H, W], probability of that class.
      logits: float32 [N, H, W, K].
    """

    label: Any
    confidence: Any
    logits: Any


VALUES = Prediction("index of the class", "probability of that class", "before the softmax over classes")


def predict_function(trained: TrainedModel) -> Callable[[jax.Array], Prediction]:
    """The function of images, uint8 RGB [N, H, W, 3]; the weights are constants of it."""
    function = trained.model.function

    def predict(image: jax.Array) -> Prediction:
        x = normalize(as_float(image))
        logits, _ = function.apply(trained.params, trained.batch_stats, x, train=False)
        confidence = jax.nn.softmax(logits).max(-1).astype(jnp.float32)
        return Prediction(jnp.argmax(logits, -1).astype(jnp.uint8), confidence, logits)

    return predict


def image_struct(trained: TrainedModel, count: str = "n") -> jax.ShapeDtypeStruct:
    """The images that a program takes: sides are free, or those of the training crop for a student of fixed size.

    Free sides are multiples of the student's `size_multiple`.

    Args:
      trained: the model.
      count: number of images; a name: any number.
    """
    crop, multiple = trained.config.data.crop_size, trained.model.student.size_multiple
    sides = f"{crop}, {crop}" if trained.model.student.fixed_size else f"{multiple}*h, {multiple}*w"
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"{count}, {sides}, 3"), jnp.uint8)


def warn_of_fixed_size(trained: TrainedModel) -> None:
    """Warns that a student takes images of one size only, if it does."""
    if trained.model.student.fixed_size:
        side = trained.config.data.crop_size
        _logger.warning(
            "%s takes images of %d x %d px only; resize other images, or average the logits of windows as evaluation "
            "does",
            trained.config.model.backbone,
            side,
            side,
        )


def describe(array: Any, values: str) -> dict[str, Any]:
    """The manifest's entry of an input or output; a size that is free is a string."""
    return {
        "shape": [str(side) if jax.export.is_symbolic_dim(side) else side for side in array.shape],
        "dtype": array.dtype.name,
        "values": values,
    }
