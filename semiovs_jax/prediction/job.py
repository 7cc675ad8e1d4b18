"""Predicts all pictures of a source into a folder: reading, computing and writing overlap."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np
from tqdm import tqdm

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from data_pipelines.images.checksums import ImageChecksum
from data_pipelines.sources.records import UnreadableError
from semiovs_jax.evaluation.buckets import Size
from semiovs_jax.evaluation.evaluator import NotFiniteLogitsError
from semiovs_jax.prediction.contact_sheet import Predicted, write_contact_sheet
from semiovs_jax.prediction.outputs import Outputs
from semiovs_jax.prediction.predictor import Predictor, Started
from semiovs_jax.prediction.sources import Picture
from semiovs_jax.runtime.overlap import one_behind

_DECODED_AHEAD = 2  # batches

_logger = logging.getLogger(__name__)


class Done(NamedTuple):
    """Result of `predict_pictures`.

    Attributes:
      predicted: number of images predicted now.
      skipped: number of images whose predictions were there.
      bad: why an image has no prediction, by its name.
    """

    predicted: int
    skipped: int
    bad: Mapping[str, str]


class _Known(NamedTuple):
    """What is known of a picture before it is decoded.

    Attributes:
      size: (height, width); None if the picture is bad.
      checksum: of the picture; None if it is bad.
      confidence: mean confidence of its finished prediction; None without one.
      fault: why it is bad; "" if it is not.
    """

    size: Size | None
    checksum: ImageChecksum | None
    confidence: float | None
    fault: str = ""


class _Decoded(NamedTuple):
    image: np.ndarray | None
    fault: str = ""


def predict_pictures(
    pictures: Sequence[Picture],
    predictor: Predictor,
    outputs: Outputs,
    dataset: DatasetInfo,
    *,
    num_threads: int,
    facts: dict[str, Any],
) -> Done:
    """Predicts the pictures that have no prediction yet, then writes the table and the contact sheet.

    A picture that cannot be used is left out and named.

    Args:
      pictures: all pictures of the source.
      predictor: the model.
      outputs: the folder, claimed with `begin`.
      dataset: class names and palette.
      num_threads: threads that read pictures, and as many that write predictions; at least 1.
      facts: shown on the contact sheet, values by name.

    Raises:
      InputError: no picture can be read, the memory is too small, or a file cannot be written.
    """
    num_threads = max(1, num_threads)
    job = _Job(pictures, predictor, outputs, num_threads)
    job.look()
    if all(known.fault for known in job.known):
        few = [f"{name}: {fault}" for name, fault in job.bad.items()]
        raise InputError(f"none of the {len(pictures)} images can be used: {first_few(few)}")
    skipped = sum(known.confidence is not None for known in job.known)
    predicted = job.run()
    finished = [Predicted(pictures[i], confidence) for i, confidence in sorted(job.confidence.items())]
    outputs.write_table([(item.picture.id, item.picture.name, item.confidence) for item in finished])
    write_contact_sheet(outputs, finished, dataset, facts)
    return Done(predicted, skipped, job.bad)


class _Job:
    """The work of `predict_pictures`.

    Attributes:
      known: of each picture, after `look`.
      confidence: mean confidence of finished predictions, by the picture's index.
      bad: see `Done`.
    """

    def __init__(self, pictures: Sequence[Picture], predictor: Predictor, outputs: Outputs, num_threads: int):
        self.known: list[_Known] = []
        self.confidence: dict[int, float] = {}
        self.bad: dict[str, str] = {}
        self._pictures, self._predictor, self._outputs = pictures, predictor, outputs
        self._num_threads = num_threads

    def look(self) -> None:
        """Reads the headers of all pictures, and finds the finished predictions."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            found = pool.map(self._look, self._pictures)
            bar = tqdm(found, "sizes", len(self._pictures), unit="image", disable=None, leave=False)
            self.known = list(bar)
        for index, known in enumerate(self.known):
            if known.fault:
                self._add_bad(index, known.fault)
            elif known.confidence is not None:
                self.confidence[index] = known.confidence

    def run(self) -> int:
        """Predicts what is left; returns the number of pictures predicted now."""
        batches = self._batches()
        total, before = len(self._pictures), len(self._pictures) - sum(len(indices) for _, indices in batches)
        predicted = 0
        with (
            ThreadPoolExecutor(self._num_threads) as pool,
            tqdm(desc="predict", total=total, initial=before, unit="image", disable=None) as bar,
        ):
            started = one_behind(self._start(batches))
            written = one_behind(self._write(indices, images, batch, pool) for indices, images, batch in started)
            for count, futures in written:
                for index, future in futures.items():
                    self.confidence[index] = future.result()
                predicted += len(futures)
                bar.update(count)
                if self.bad:
                    bar.set_postfix(bad=len(self.bad))
        return predicted

    def _look(self, picture: Picture) -> _Known:
        try:
            size, checksum = picture.size(), picture.checksum()
        except UnreadableError as error:
            return _Known(None, None, None, str(error))
        if fault := self._predictor.size_fault(size):
            return _Known(None, None, None, fault)
        found = self._outputs.found(picture.id)
        return _Known(size, checksum, found.confidence if found and found.image == checksum else None)

    def _batches(self) -> list[tuple[Any, list[int]]]:
        """The batches that are left. Their shapes depend on all pictures: a resumed command compiles the same ones."""
        readable = [index for index, known in enumerate(self.known) if known.size is not None]
        sizes = [known.size for known in self.known if known.size is not None]
        done = [position for position, index in enumerate(readable) if index in self.confidence]
        batches = self._predictor.batches(sizes, skip=done)
        return [(shape, [readable[position] for position in positions]) for shape, positions in batches]

    def _start(
        self, batches: Sequence[tuple[Any, list[int]]]
    ) -> Iterator[tuple[list[int], list[np.ndarray], Started | None]]:
        """Decodes the batches in threads, ahead of the devices, and starts their computation."""
        order = [index for _, indices in batches for index in indices]
        if not order:
            return
        ahead = max(self._num_threads, _DECODED_AHEAD * max(len(indices) for _, indices in batches))
        options = grain.ReadOptions(self._num_threads, ahead)
        decoded = iter(grain.MapDataset.source(order).map(self._decode).to_iter_dataset(options))
        for shape, indices in batches:
            found = dict(zip(indices, itertools.islice(decoded, len(indices)), strict=True))
            for index, result in found.items():
                if result.fault:
                    self._add_bad(index, result.fault)
            images = {index: result.image for index, result in found.items() if result.image is not None}
            started = self._predictor.start(shape, list(images.values())) if images else None
            yield list(images), list(images.values()), started

    def _decode(self, index: int) -> _Decoded:
        picture = self._pictures[index]
        try:
            image = picture.pixels()
        except UnreadableError as error:
            return _Decoded(None, str(error))
        if image.shape[:2] != self.known[index].size:
            height, width = image.shape[:2]
            return _Decoded(None, f"{picture.name}: has changed to {width}x{height} (width x height); run again")
        return _Decoded(image)

    def _write(
        self, indices: Sequence[int], images: Sequence[np.ndarray], started: Started | None, pool: ThreadPoolExecutor
    ) -> tuple[int, dict[int, Future[float]]]:
        """Waits for the devices, then starts to write the predictions in threads: mean confidences by index."""
        futures: dict[int, Future[float]] = {}
        results = self._predictor.finish(started) if started else []
        for index, image, result in zip(indices, images, results, strict=True):
            if isinstance(result, NotFiniteLogitsError):
                self._add_bad(index, str(result))
            else:
                futures[index] = pool.submit(self._write_one, index, image, result)
        return len(indices), futures

    def _write_one(self, index: int, image: np.ndarray, prediction: Any) -> float:
        checksum = self.known[index].checksum
        assert checksum is not None
        return self._outputs.write(self._pictures[index].id, checksum, image, prediction)

    def _add_bad(self, index: int, fault: str) -> None:
        name = self._pictures[index].name
        self.bad[name] = fault.removeprefix(f"{name}: ")
        _logger.debug("%s: %s", name, self.bad[name])
