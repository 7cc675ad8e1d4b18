"""Evaluates a student on the validation images, against labels of the images' own sizes.

The references evaluate one image at a time. UniMatch evaluates whole images (`evaluate.py`, mode "original"); SemiVL
resizes the short side to 512 and uses sliding windows (`third_party/unimatch/supervised.py`, mode
"zegclip_sliding_window"). Here images share a few padded shapes, and the logits of every pixel are those of the image
without padding.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax.evaluation import metrics
from semiovs_jax.evaluation.buckets import DEFAULT_MULTIPLE, Size, bucket_of, choose_buckets
from semiovs_jax.evaluation.inference import Inference
from semiovs_jax.evaluation.measures import ImagePrediction
from semiovs_jax.evaluation.metrics import Scores
from semiovs_jax.evaluation.views import Outcome, Views
from semiovs_jax.models import Functional
from semiovs_jax.runtime.sharding import batch_sharding, replicated, shard_batch

Batch = dict[str, np.ndarray]
_Group = tuple[int, list[int]]  # the bucket of a batch, and the positions of its records


class NotFiniteLogitsError(InputError):
    """Validation images whose logits are not finite: they have no prediction, so there is no mIoU."""


class ImageScores(NamedTuple):
    """How well each image of a split is predicted, in the order of the split.

    Attributes:
      miou: float64 [N], mean IoU over the classes in the label or the prediction; NaN without labeled pixels.
      label_pixels: int64 [N, K], pixels of each true class.
    """

    miou: np.ndarray
    label_pixels: np.ndarray


class _Counts(NamedTuple):
    """Of a batch: int32 [K, K], pixels by true and predicted class, and int32 [], images with logits not finite.

    `by_image`, int32 [N, K, K], has the pixels of each image. It stays on the devices of the images. Or the shardings
    of these arrays.
    """

    confusion: Any
    bad_images: Any
    by_image: Any


class _Planes(NamedTuple):
    """Of a batch: labels and predictions, uint8 [N, H, W], and confidences, float32 [N, H, W]; NaN without logits."""

    label: jax.Array
    prediction: jax.Array
    confidence: jax.Array


def check_evaluation(config: ml_collections.ConfigDict, sizes: Sequence[Size], size_multiple: int = 1) -> None:
    """Checks `config.eval` against the validation images and the student.

    Args:
      config: `config.eval`.
      sizes: (height, width) of the validation images.
      size_multiple: see `Student`.

    Raises:
      InputError: gaps between windows, windows larger than an image at the smallest scale, or windows of a size that
        the student does not accept; all in one error.
    """
    if config.window > 0 and (faults := list(_window_faults(config, sizes, size_multiple))):
        raise InputError(*faults)


def _window_faults(config: ml_collections.ConfigDict, sizes: Sequence[Size], size_multiple: int) -> Iterator[str]:
    if config.stride > config.window:
        yield (
            f"config.eval.stride={config.stride} with config.eval.window={config.window}: set it between 1 and "
            f"{config.window}; a larger stride leaves pixels between windows without logits"
        )
    if config.window % size_multiple:
        yield (
            f"config.eval.window={config.window}: this backbone needs sides that are multiples of {size_multiple}; set "
            f"it to {config.window // size_multiple * size_multiple or size_multiple}"
        )
    if config.short_side:
        if config.window > config.short_side:
            yield (
                f"config.eval.window={config.window} is larger than images with config.eval.short_side="
                f"{config.short_side}; set it to {config.short_side} or less"
            )
        else:
            what = f"images with config.eval.short_side={config.short_side} are"
            yield from _scale_faults(config, config.short_side, what)
        return
    height, width = min(sizes, key=min, default=(config.window, config.window))
    if min(height, width) < config.window:
        yield (
            f"config.eval.window={config.window} is larger than a validation image of {width}x{height} (width x "
            f"height); set it to {min(height, width)} or less, or config.eval.short_side to {config.window} or more"
        )
    elif sizes:
        what = f"a validation image of {width}x{height} (width x height) is"
        yield from _scale_faults(config, min(height, width), what)


def _scale_faults(config: ml_collections.ConfigDict, side: int, what: str) -> Iterator[str]:
    """The fault of scales at which images whose short side is `side` are smaller than a window."""
    smallest = min((scale for scale in config.scales if scale > 0), default=1.0)
    if round(side * smallest) < config.window:
        yield (
            f"config.eval.scales={tuple(config.scales)}: {what} seen at a short side of {round(side * smallest)} px, "
            f"smaller than config.eval.window={config.window}; leave out scales below {config.window / side:.3g}, or "
            f"set config.eval.short_side to {math.ceil(config.window / smallest)} or more"
        )


class Evaluator:
    """Computes the scores of a student on the validation records.

    Attributes:
      records: the validation images and labels.
      protocol: how images are evaluated and scores averaged, in one sentence.
    """

    def __init__(
        self,
        student: Functional,
        records: ValidationRecords,
        dataset: DatasetInfo,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        *,
        size_multiple: int,
        num_threads: int = 2,
    ):
        """Chooses a few padded shapes for the student's inputs.

        Args:
          student: the student as a pure function.
          records: the validation images and labels.
          dataset: class count and ignore index.
          config: `config.eval` with the keys batch_size (images per batch over all devices, rounded up to a multiple
            of the number of devices), max_shapes, short_side, window, stride, scales and flip.
          mesh: the devices.
          size_multiple: see `Student`; the sides of padded shapes are multiples of it.
          num_threads: threads that decode records; 0 for none.

        Raises:
          InputError: see `check_evaluation`.
        """
        sizes = records.sizes
        check_evaluation(config, sizes, size_multiple)
        self._inference = Inference.create(student, config)
        self.records = records
        self._dataset = dataset
        self._mesh = mesh
        self._num_threads = num_threads
        self._resized = config.short_side > 0
        self._size_multiple = size_multiple
        self._batch_size = -(-config.batch_size // mesh.size) * mesh.size
        self.protocol = describe_protocol(config)
        input_sizes = [self._inference.input_size(size) for size in sizes]
        multiple = -(-DEFAULT_MULTIPLE // size_multiple) * size_multiple
        self._input_shapes = choose_buckets(input_sizes, config.max_shapes, multiple)
        buckets = [bucket_of(size, self._input_shapes) for size in input_sizes]
        self._label_shapes = self._input_shapes
        if self._resized:
            self._label_shapes = _enclosing(sizes, buckets, len(self._input_shapes))
        self._buckets = buckets
        self._groups = _group(buckets, self._batch_size, range(len(buckets)))
        count_shardings = _Counts(replicated(mesh), replicated(mesh), batch_sharding(mesh))
        self._confusion = jax.jit(self._count, static_argnames="shape", out_shardings=count_shardings)
        self._planes = jax.jit(self._predict_planes, static_argnames="shape", out_shardings=replicated(mesh))

    def run(self, params: Any, batch_stats: Any) -> Scores:
        """Evaluates the student with these parameters and running statistics.

        Every process must call this; each decodes its own rows of every batch.

        Raises:
          NotFiniteLogitsError: an image has logits that are not finite.
          InputError: an image or a label cannot be read or is invalid.
        """
        return self._run(params, batch_stats, None)

    def run_by_image(self, params: Any, batch_stats: Any) -> tuple[Scores, ImageScores]:
        """As `run`, with the scores of each image beside those of all."""
        images = len(self.records)
        found = ImageScores(np.full(images, np.nan), np.zeros((images, self._dataset.num_classes), np.int64))
        return self._run(params, batch_stats, found), found

    def _run(self, params: Any, batch_stats: Any, found: ImageScores | None) -> Scores:
        """As `run`; writes the scores of each image to `found`."""
        total = np.zeros((self._dataset.num_classes, self._dataset.num_classes), np.int64)
        bad_images = 0
        computed = self._computed(self._confusion, self._groups, params, batch_stats)
        for (_, indices), counts in zip(self._groups, computed, strict=True):
            total += np.asarray(counts.confusion)
            bad_images += int(counts.bad_images)
            if found is not None:
                for index, confusion in zip(indices, _on_host(counts.by_image), strict=False):
                    found.label_pixels[index] = confusion.sum(1)
                    if confusion.any():
                        found.miou[index] = metrics.scores(confusion).mean_iou_present
        self._refuse_not_finite(bad_images)
        return metrics.scores(total)

    def predictions(
        self, params: Any, batch_stats: Any, only: Collection[int] | None = None
    ) -> Iterator[ImagePrediction]:
        """Predicts every image, from the logits that `run` scores; one forward pass, as there.

        Every process must call this, and gets all images.

        Args:
          params: parameters of the student.
          batch_stats: its running statistics.
          only: positions of the images to predict; None for all.

        Raises:
          NotFiniteLogitsError: after the last image; an image whose logits are not finite is left out.
          InputError: an image or a label cannot be read or is invalid.
        """
        bad_images = 0
        groups = self._groups if only is None else _group(self._buckets, self._batch_size, only)
        batches = self._computed(self._planes, groups, params, batch_stats)
        for (_, indices), planes in zip(groups, batches, strict=True):
            whole = [np.asarray(plane) for plane in planes]
            for row, index in enumerate(indices):
                height, width = self.records.sizes[index]
                label, prediction, confidence = (plane[row, :height, :width].copy() for plane in whole)
                if np.isnan(confidence[label != self._dataset.ignore_index]).any():
                    bad_images += 1
                else:
                    yield ImagePrediction(index, label, prediction, confidence)
        self._refuse_not_finite(bad_images)

    def _refuse_not_finite(self, bad_images: int) -> None:
        if bad_images:
            raise NotFiniteLogitsError(
                f"{bad_images} of {len(self.records)} validation images have logits that are not finite (NaN or "
                "infinity), so there is no mIoU; evaluate another checkpoint, or compute with "
                "--config.model.dtype=float32"
            )

    def _computed(
        self, function: Callable[..., Any], groups: Sequence[_Group], params: Any, batch_stats: Any
    ) -> Iterator[Any]:
        """The result of every batch; the devices compute one batch while the host decodes the next."""
        pending: list[Any] = []
        for bucket, batch in self._batches(groups):
            sharded = shard_batch(batch, self._mesh)
            pending.append(function(params, batch_stats, sharded, shape=self._input_shapes[bucket]))
            if len(pending) > 1:
                yield pending.pop(0)
        yield from pending

    def _classify(self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], shape: Size) -> Outcome:
        """What is known of the labels' pixels; `shape` is the padded shape of the student's input at scale 1."""
        return self._inference.classify(
            params,
            batch_stats,
            batch["image"],
            batch["size"],
            input_size=batch.get("input_size"),
            input_shape=shape,
            size_multiple=self._size_multiple,
            resized=self._resized,
        )

    def _count(self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], shape: Size) -> _Counts:
        score, _, finite = self._classify(params, batch_stats, batch, shape)
        valid = batch["label"] != self._dataset.ignore_index
        classes = self._dataset.num_classes
        by_image = metrics.confusion_matrices(batch["label"], jnp.argmax(score, -1), valid & finite, classes)
        # Images are added up last: until then, no count moves between devices.
        return _Counts(by_image.sum(0), jnp.count_nonzero((valid & ~finite).any((1, 2))), by_image)

    def _predict_planes(self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], shape: Size) -> _Planes:
        score, probability, finite = self._classify(params, batch_stats, batch, shape)
        confidence = probability.max(-1).astype(jnp.float32)
        return _Planes(batch["label"], jnp.argmax(score, -1).astype(jnp.uint8), jnp.where(finite, confidence, jnp.nan))

    def _batches(self, groups: Sequence[_Group] | None = None) -> Iterator[tuple[int, Batch]]:
        """The bucket of every batch with this process's rows, decoded one batch ahead."""
        rows = self._batch_size // jax.process_count()
        mine = slice(rows * jax.process_index(), rows * (jax.process_index() + 1))
        own = [(bucket, indices[mine]) for bucket, indices in (self._groups if groups is None else groups)]
        order = [index for _, indices in own for index in indices]
        options = grain.ReadOptions(self._num_threads, max(self._num_threads, rows))
        records = iter(grain.MapDataset.source(order).map(self.records.__getitem__).to_iter_dataset(options))
        for bucket, indices in own:
            yield bucket, self._stack(bucket, itertools.islice(records, len(indices)), rows)

    def _stack(self, bucket: int, records: Iterable[dict[str, Any]], rows: int) -> Batch:
        """Puts each record in the top left of its shape; padding, and rows without a record, have the ignore index."""
        shape = self._label_shapes[bucket]
        batch: Batch = {
            "image": np.zeros((rows, *shape, 3), np.uint8),
            "label": np.full((rows, *shape), self._dataset.ignore_index, np.uint8),
            "size": np.tile(np.array(shape, np.int32), (rows, 1)),
        }
        scales = self._inference.views.scales
        resizes = self._resized or scales != (1.0,)
        if resizes:
            padded = [
                self._inference.input_shape(self._input_shapes[bucket], scale, self._size_multiple) for scale in scales
            ]
            batch["input_size"] = np.tile(np.array(padded, np.int32), (rows, 1, 1))
        for row, record in enumerate(records):
            height, width = record["label"].shape
            batch["image"][row, :height, :width] = record["image"]
            batch["label"][row, :height, :width] = record["label"]
            batch["size"][row] = height, width
            if resizes:
                batch["input_size"][row] = [self._inference.input_size((height, width), scale) for scale in scales]
        return batch


def describe_protocol(config: ml_collections.ConfigDict) -> str:
    """How images are evaluated with `config.eval`, and how scores are averaged, in one sentence."""
    how = f"in windows of {config.window} px every {config.stride} px with mean logits" if config.window else "whole"
    size = "at its own size"
    if config.short_side:
        size = f"with its short side at {config.short_side} px, logits resized to the label's size"
    return (
        f"every validation image {how} and {size}, {Views.create(config).describe()}; IoU from one confusion matrix "
        "over all images; mIoU over all classes with absent classes as 0, and over present classes"
    )


def _on_host(array: jax.Array) -> np.ndarray:
    """A whole array, whichever process has its parts."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _enclosing(sizes: Sequence[Size], buckets: Sequence[int], count: int) -> list[Size]:
    """The smallest shape for the sizes in each of `count` buckets; (1, 1) for an empty bucket."""
    shapes = [(1, 1)] * count
    for bucket, (height, width) in zip(buckets, sizes, strict=True):
        shapes[bucket] = max(shapes[bucket][0], height), max(shapes[bucket][1], width)
    return shapes


def _group(buckets: Sequence[int], batch_size: int, only: Collection[int]) -> list[_Group]:
    """Splits some record indices into batches of one bucket each."""
    groups = []
    for bucket in sorted({buckets[i] for i in only}):
        indices = [i for i in sorted(set(only)) if buckets[i] == bucket]
        groups += [(bucket, indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return groups
