"""Predicts the class of every pixel, and the confidence in it, of images of any size.

The classes and probabilities are those of evaluation: the same functions, on padded images.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from semiovs_jax.evaluation.buckets import Size
from semiovs_jax.evaluation.evaluator import NotFiniteLogitsError, check_evaluation
from semiovs_jax.evaluation.inference import Inference
from semiovs_jax.prediction.shapes import Shape, Shapes
from semiovs_jax.runtime.sharding import batch_sharding, shard_batch

MOST_INPUT_PIXELS = 2**26  # of one image as the student sees it

_PIXELS_OF_A_ROW = 2**20  # batches of larger images have fewer rows
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
      label: uint8 [H, W], class indices.
      confidence: float32 [H, W], 0..1, the softmax probability of that class.
    """

    label: np.ndarray
    confidence: np.ndarray


class Started(NamedTuple):
    """A batch that the devices compute.

    Attributes:
      sizes: (height, width) of its images.
      outputs: labels uint8 [N, H, W], confidences float32 [N, H, W], and bool [N]: whether all logits are finite.
    """

    sizes: tuple[Size, ...]
    outputs: tuple[jax.Array, jax.Array, jax.Array]


class Predictor:
    """A model on the devices of this process.

    Attributes:
      compilations: number of programs compiled so far.
    """

    def __init__(
        self,
        inference: Inference,
        params: Any,
        batch_stats: Any,
        mesh: Mesh,
        config: ml_collections.ConfigDict,
        *,
        size_multiple: int,
    ):
        """Compiles nothing yet.

        Args:
          inference: the student, how it sees an image, and the views that are averaged.
          params: its parameters, on the devices of `mesh`.
          batch_stats: its running statistics, likewise.
          mesh: devices of this process.
          config: `config.eval`. A batch is rounded up to a multiple of the devices; batches of images above a million
            pixels are smaller.
          size_multiple: see `Student`.

        Raises:
          InputError: windows that leave gaps or that the student does not accept.
        """
        check_evaluation(config, (), size_multiple)
        self._inference, self._scales = inference, inference.views.scales
        self._weights = params, batch_stats
        self._mesh = mesh
        self._batch_size = config.batch_size
        self._multiple = size_multiple
        self._shapes = Shapes(inference.input_size, config.max_shapes, size_multiple)
        self._programs: dict[Shape, Any] = {}
        self.compilations = 0

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predicts images of any sizes.

        Args:
          images: uint8 [H, W, 3] each, RGB, upright.

        Raises:
          NotFiniteLogitsError: logits of an image are not finite.
          InputError: an image is too large for the memory.
        """
        found: list[Prediction | None] = [None] * len(images)
        waiting: list[tuple[list[int], Started]] = []
        for shape, indices in self.batches([_size(image) for image in images]):
            waiting.append((indices, self.start(shape, [images[i] for i in indices])))
            if len(waiting) > 1:
                self._collect(found, *waiting.pop(0))
        for indices, started in waiting:
            self._collect(found, indices, started)
        return [prediction for prediction in found if prediction is not None]

    def batches(self, sizes: Sequence[Size], skip: Iterable[int] = ()) -> list[tuple[Shape, list[int]]]:
        """Groups images into batches of one padded shape.

        Args:
          sizes: (height, width) of all images; the shapes depend on all of them.
          skip: indices of images that are in no batch.

        Returns:
          The shape of each batch, and the indices of its images.
        """
        skipped = frozenset(skip)
        members: dict[Shape, list[int]] = {}
        for index, shape in enumerate(self._shapes.provide(sizes)):
            if index not in skipped:
                members.setdefault(shape, []).append(index)
        groups = []
        for shape, indices in members.items():
            rows = self._rows(shape)
            groups += [(shape, indices[i : i + rows]) for i in range(0, len(indices), rows)]
        return groups

    def start(self, shape: Shape, images: Sequence[np.ndarray]) -> Started:
        """Starts the computation of a batch; returns before it ends.

        Args:
          shape: the padded shape, of `batches`.
          images: uint8 [H, W, 3] each, at most as many as a batch of `batches` has.

        Raises:
          InputError: the images are too large for the memory.
        """
        rows, sizes = self._rows(shape), [_size(image) for image in images]
        batch: dict[str, np.ndarray] = {
            "image": np.zeros((rows, *shape.image, 3), np.uint8),
            "size": np.tile(np.array(shape.image, np.int32), (rows, 1)),
            "input_size": np.empty((rows, len(self._scales), 2), np.int32),
        }
        inference, multiple = self._inference, self._multiple
        batch["input_size"][:] = [inference.input_shape(shape.input, scale, multiple) for scale in self._scales]
        for row, (image, size) in enumerate(zip(images, sizes, strict=True)):
            batch["image"][row, : size[0], : size[1]] = image
            batch["size"][row] = size
            batch["input_size"][row] = [inference.input_size(size, scale) for scale in self._scales]
        program = self._program(shape)
        try:
            return Started(tuple(sizes), program(*self._weights, shard_batch(batch, self._mesh)))
        except jax.errors.JaxRuntimeError as error:
            if _OUT_OF_MEMORY not in str(error):
                raise
            raise _too_large(shape.image) from error

    def finish(self, started: Started) -> list[Prediction | NotFiniteLogitsError]:
        """Waits for a batch: the prediction of each image, or the error of one whose logits are not finite.

        Raises:
          InputError: the images are too large for the memory.
        """
        try:
            labels, confidences, finite = jax.device_get(started.outputs)
        except jax.errors.JaxRuntimeError as error:
            if _OUT_OF_MEMORY not in str(error):
                raise
            raise _too_large(started.outputs[0].shape[1:]) from error
        found: list[Prediction | NotFiniteLogitsError] = []
        for row, (height, width) in enumerate(started.sizes):
            if finite[row]:
                planes = (np.ascontiguousarray(plane[row, :height, :width]) for plane in (labels, confidences))
                found.append(Prediction(*planes))
            else:
                found.append(
                    NotFiniteLogitsError(
                        f"an image of {width}x{height} (width x height) has logits that are not finite (NaN or "
                        "infinity); use another checkpoint, or compute with --config.model.dtype=float32"
                    )
                )
        return found

    def size_fault(self, size: Size) -> str | None:
        """Why an image of this size cannot be predicted; None if it can."""
        height, width = self._inference.input_size(size, max(self._scales))
        if height * width <= MOST_INPUT_PIXELS:
            return None
        return (
            f"an image of {size[1]}x{size[0]} (width x height) is seen at {width}x{height}, more than "
            f"{MOST_INPUT_PIXELS:,} pixels; cut it into tiles"
        )

    def _collect(self, found: list[Prediction | None], indices: Sequence[int], started: Started) -> None:
        for index, result in zip(indices, self.finish(started), strict=True):
            if isinstance(result, NotFiniteLogitsError):
                raise result
            found[index] = result

    def _rows(self, shape: Shape) -> int:
        largest = max(shape.image[0] * shape.image[1], shape.input[0] * shape.input[1])
        rows = min(self._batch_size, self._batch_size * _PIXELS_OF_A_ROW // largest)
        return max(1, -(-rows // self._mesh.size)) * self._mesh.size

    def _program(self, shape: Shape) -> Any:
        """The compiled function for a shape; those of shapes that are no longer known are dropped."""
        if shape not in self._programs:
            known = set(self._shapes.known)
            self._programs = {other: program for other, program in self._programs.items() if other in known}
            compute = partial(self._compute, shape=shape)
            self._programs[shape] = jax.jit(compute, out_shardings=batch_sharding(self._mesh))
            self.compilations += 1
        return self._programs[shape]

    def _compute(
        self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], *, shape: Shape
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        size = batch["size"]
        found = self._inference.classify(
            params,
            batch_stats,
            batch["image"],
            size,
            input_size=batch["input_size"],
            input_shape=shape.input,
            size_multiple=self._multiple,
            resized=shape.resized,
        )
        finite = (found.finite | ~_inside(size, shape.image)).all((1, 2))
        confidence = found.probability.max(-1).astype(jnp.float32)
        return jnp.argmax(found.score, -1).astype(jnp.uint8), confidence, finite


def _size(image: np.ndarray) -> Size:
    return image.shape[0], image.shape[1]


def _inside(size: jax.Array, shape: Size) -> jax.Array:
    """Which pixels of a padded batch belong to an image: bool [N, H, W]."""
    rows = jnp.arange(shape[0]) < size[:, :1]
    columns = jnp.arange(shape[1]) < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def _too_large(shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"images of {shape[1]}x{shape[0]} (width x height, with padding) do not fit into the memory; set "
        "--config.eval.batch_size to less, or compute in windows: --config.eval.window=512 --config.eval.stride=426"
    )
