"""Predicts the class of every pixel, and the confidence in it, of images of any size.

At one scale and without flips, the logits are those of evaluation: the same function, on padded images. With several
scales or flips, the softmax probabilities of all views are averaged.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_pipelines.errors import Faults, InputError
from data_pipelines.images.transforms import short_side_size
from semiovs_jax.evaluation.buckets import Size
from semiovs_jax.evaluation.evaluator import NotFiniteLogitsError, check_evaluation
from semiovs_jax.evaluation.inference import Inference
from semiovs_jax.models.precision import full_precision
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


class Views(NamedTuple):
    """The views of an image whose probabilities are averaged.

    Attributes:
      scales: factors of the size at which the student sees the image.
      flip: whether each is seen mirrored, too.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @property
    def single(self) -> bool:
        """Whether there is one view, that of evaluation."""
        return self.scales == (1.0,) and not self.flip


_ONE_VIEW = Views()


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
        views: Views = _ONE_VIEW,
    ):
        """Compiles nothing yet.

        Args:
          inference: the student and how it sees an image.
          params: its parameters, on the devices of `mesh`.
          batch_stats: its running statistics, likewise.
          mesh: devices of this process.
          config: `config.eval`. A batch is rounded up to a multiple of the
            devices; batches of images above a million pixels are smaller.
          size_multiple: see `Student`.
          views: what is averaged.

        Raises:
          InputError: a scale that is not positive, or windows that leave gaps or that the student does not accept.
        """
        faults = Faults()
        faults.add(_scale_faults(views.scales))
        with faults.collected():
            check_evaluation(config, (), size_multiple)
        faults.refuse()
        self._inference, self._views = inference, views
        self._weights = params, batch_stats
        self._mesh = mesh
        self._batch_size = config.batch_size
        self._multiple = size_multiple
        self._shapes = Shapes(self._input_size, config.max_shapes, size_multiple)
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
            "input_size": np.empty((rows, len(self._views.scales), 2), np.int32),
        }
        batch["input_size"][:] = [self._scaled(shape.input, scale) for scale in self._views.scales]
        for row, (image, size) in enumerate(zip(images, sizes, strict=True)):
            batch["image"][row, : size[0], : size[1]] = image
            batch["size"][row] = size
            batch["input_size"][row] = [self._input_size(size, scale) for scale in self._views.scales]
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
        height, width = self._input_size(size, max(self._views.scales))
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

    def _input_size(self, size: Size, scale: float = 1.0) -> Size:
        """The size at which the student sees an image; its sides are at least those of a window."""
        window = self._inference.window
        seen = self._inference.input_size(size)
        if min(seen) < window:
            seen = short_side_size(seen, window)
        if scale == 1:
            return seen
        factor = max(scale, window / min(seen))
        height, width = (max(1, window, round(side * factor)) for side in seen)
        return height, width

    def _scaled(self, shape: Size, scale: float) -> Size:
        """The padded input shape at a scale: it holds the inputs of all images of the shape."""
        if scale == 1:
            return shape
        factor = max(scale, 1.0) if self._inference.window else scale  # small images are not seen smaller
        height, width = (-(-(round(side * factor) + 1) // self._multiple) * self._multiple for side in shape)
        return height, width

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
        size, inside = batch["size"], _inside(batch["size"], shape.image)
        finite, mean = jnp.ones(len(size), bool), jnp.zeros(())
        for i, scale in enumerate(self._views.scales):
            resized = shape.resized or scale != 1
            for mirrored in (False, True) if self._views.flip else (False,):
                logits = full_precision(
                    self._inference.logits(
                        params,
                        batch_stats,
                        _mirrored(batch["image"], size) if mirrored else batch["image"],
                        size,
                        input_size=batch["input_size"][:, i] if resized else None,
                        input_shape=self._scaled(shape.input, scale) if resized else None,
                    )
                )
                finite &= (jnp.isfinite(logits).all(-1) | ~inside).all((1, 2))
                probability = jax.nn.softmax(logits)
                mean += _mirrored(probability, size) if mirrored else probability
        mean /= len(self._views.scales) * (1 + self._views.flip)
        # Probabilities of two classes may round to the same value where their logits differ.
        label = jnp.argmax(logits if self._views.single else mean, -1)
        return label.astype(jnp.uint8), mean.max(-1).astype(jnp.float32), finite


def _scale_faults(scales: Sequence[float]) -> list[str]:
    if scales and all(0 < scale < float("inf") for scale in scales):
        return []
    return [f"--scales={','.join(map(str, scales))}: give positive numbers, such as 0.5,1,1.5"]


def _size(image: np.ndarray) -> Size:
    return image.shape[0], image.shape[1]


def _inside(size: jax.Array, shape: Size) -> jax.Array:
    """Which pixels of a padded batch belong to an image: bool [N, H, W]."""
    rows = jnp.arange(shape[0]) < size[:, :1]
    columns = jnp.arange(shape[1]) < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def _mirrored(x: jax.Array, size: jax.Array) -> jax.Array:
    """Mirrors images [N, H, W, C] left to right within their true widths."""
    column = jnp.arange(x.shape[2])
    width = size[:, 1:]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(x, source[:, None, :, None], axis=2)


def _too_large(shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"images of {shape[1]}x{shape[0]} (width x height, with padding) do not fit into the memory; set "
        "--config.eval.batch_size to less, or compute in windows: --config.eval.window=512 --config.eval.stride=426"
    )
