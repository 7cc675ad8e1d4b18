"""Labels images in batches: decoding, computing and encoding overlap."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipelines.images.checksums import ImageChecksum, read_ends
from data_pipelines.images.decode import decode_image, image_size
from data_pipelines.labels.examples import LabelExample, encode_label
from data_pipelines.labels.store import LabelStore
from data_pipelines.loading.worker_log import BadRecords
from data_pipelines.sources.records import EncodedImage, Record, UnreadableError
from semiovs_jax.evaluation.buckets import Size, bucket_of, choose_buckets
from semiovs_jax.ovs.base import OVS
from semiovs_jax.runtime.overlap import one_ahead, one_behind
from semiovs_jax.runtime.sharding import batch_sharding, put_state, shard_batch

MAX_CANVASES = 4  # compiled shapes
IMAGES_A_CANVAS = 1000  # for fewer, compiling another shape takes longer than the padding that it saves

_DECODED_AHEAD = 2  # batches

T = TypeVar("T")


class Batch(NamedTuple):
    """Images that are labeled together. Batches depend on the whole OOD set alone: a resumed run repeats their bits."""

    canvas: Size
    records: tuple[Record, ...]


class Part(NamedTuple):
    """Images that one process labels and the store writes together.

    Attributes:
      number: index of the part, see `LabelStore.divide`.
      records: all images of the part.
      batches: batches of the readable images.
    """

    number: int
    records: tuple[Record, ...]
    batches: tuple[Batch, ...]


class _Image(NamedTuple):
    id: str
    square: np.ndarray | None  # [S, S, 3], the model's input; None if the image has a label or is bad
    size: Size
    checksum: ImageChecksum | None


@dataclasses.dataclass(frozen=True)
class Job:
    """Labels parts of an OOD set.

    Attributes:
      store: where the labels are written.
      ovs: the model.
      mesh: devices of this process.
      batch_size: images in a batch.
      num_threads: threads that decode images, and as many that encode labels.
      bad: counts the unreadable images against the limit.
    """

    store: LabelStore
    ovs: OVS
    mesh: Mesh
    batch_size: int
    num_threads: int
    bad: BadRecords
    _reasons: dict[str, str] = dataclasses.field(default_factory=dict, init=False)  # why an image is bad, by id

    def parts(self, records: Sequence[Record]) -> list[Part]:
        """Divides the whole OOD set into parts, and parts into batches of images that share a canvas."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            sizes = list(pool.map(lambda record: self._read(record, image_size), records))
        count = min(max(1, len(records) // IMAGES_A_CANVAS), MAX_CANVASES)
        canvases = choose_buckets([size for size in sizes if size is not None], count)
        unreadable: list[Record] = []
        members: dict[Size, list[Record]] = {canvas: [] for canvas in canvases}
        for record, size in zip(records, sizes, strict=True):
            (unreadable if size is None else members[canvases[bucket_of(size, canvases)]]).append(record)
        groups = [[record.id for record in group] for group in (unreadable, *members.values())]
        by_id = {record.id: record for record in records}
        canvas_of = {record.id: canvas for canvas, group in members.items() for record in group}
        parts = []
        for number, ids in enumerate(self.store.divide(groups, self.rows)):
            part = tuple(by_id[id_] for id_ in ids)
            runs = itertools.groupby(part, lambda record: canvas_of.get(record.id))
            batches = [
                Batch(canvas, batch) for canvas, run in runs if canvas for batch in _chunks(tuple(run), self.rows)
            ]
            parts.append(Part(number, part, tuple(batches)))
        return parts

    def run(self, parts: Sequence[Part], name: str) -> int:
        """Labels the images that have no label, and writes the parts.

        The device computes a batch while the batches before it are encoded and those after it are decoded.

        Args:
          parts: this process's share of `parts`.
          name: title of the progress bar.

        Returns:
          Number of images labeled now.
        """
        unlabeled = {record.id for part in parts for record in part.records if not self.store.is_labeled(record.id)}
        work = [[b for b in part.batches if any(record.id in unlabeled for record in b.records)] for part in parts]
        total, labeled = sum(len(part.records) for part in parts), 0
        with (
            ThreadPoolExecutor(self.num_threads) as pool,
            tqdm(desc=name, total=total, initial=total - len(unlabeled), unit="image") as progress,
        ):
            computed = one_behind(self._compute(self._decode_ahead(list(itertools.chain(*work)))))
            encoded = one_behind(self._encode(images, outputs, pool) for images, outputs in computed)
            for part, batches in zip(parts, work, strict=True):
                labels: list[LabelExample] = []
                for futures in itertools.islice(encoded, len(batches)):
                    labels += [future.result() for future in futures]
                    progress.update(len(futures))
                bad = {record.id: self._reasons[record.id] for record in part.records if record.id in self._reasons}
                self.store.write_part(part.number, labels, bad)
                labeled += len(labels)
                if self._reasons:
                    progress.set_postfix(bad=len(self._reasons))
        return labeled

    @property
    def rows(self) -> int:
        """Images in a batch: `batch_size`, rounded up to a multiple of the devices."""
        return -(-self.batch_size // self.mesh.size) * self.mesh.size

    def _read(self, record: Record, read: Callable[[Any], T]) -> T | None:
        """`read(record.image)`; None, with the reason recorded, if the image is bad."""
        try:
            return read(record.image)
        except UnreadableError as error:
            self._reasons[record.id] = str(error)
            self.bad.add(record.id, error)
            return None

    def _decode_ahead(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[_Image]]]:
        records = [record for batch in batches for record in batch.records]
        options = grain.ReadOptions(self.num_threads, max(self.num_threads, _DECODED_AHEAD * self.rows))
        decoded = iter(grain.MapDataset.source(records).map(self._decode).to_iter_dataset(options))
        for batch in batches:
            yield batch, list(itertools.islice(decoded, len(batch.records)))

    def _decode(self, record: Record) -> _Image:
        decoded = None if self.store.is_labeled(record.id) else self._read(record, _decode_with_checksum)
        if decoded is None:
            return _Image(record.id, None, (0, 0), None)
        pixels, checksum = decoded
        return _Image(record.id, self.ovs.preprocess(pixels), pixels.shape[:2], checksum)

    def _compute(self, decoded: Iterable[tuple[Batch, list[_Image]]]) -> Iterator[tuple[list[_Image], Any]]:
        """Starts the computation of each batch; yields its images with labels and confidences still on the devices."""
        label = self._label_function()
        weights = put_state(self.ovs.weights, self.mesh)
        ready = ((images, batch.canvas, self._inputs(batch.canvas, images)) for batch, images in decoded)
        # A thread of its own: on a GPU, calling a model with a loop of unknown length blocks until it is computed.
        for images, canvas, inputs in one_ahead(ready):
            yield images, label(weights, *inputs, canvas=canvas)

    def _label_function(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        @functools.partial(jax.jit, static_argnames="canvas", out_shardings=batch_sharding(self.mesh))
        def label_planes(
            weights: Any, image: jax.Array, size: jax.Array, *, canvas: Size
        ) -> tuple[jax.Array, jax.Array]:
            found = self.ovs.label(weights, image.astype(jnp.float32), label_size=canvas, size=size)
            label = jnp.where(found.valid, found.label, self.store.dataset.ignore_index)
            confidence = jnp.where(found.valid, jnp.round(255 * found.confidence), 0)
            return label.astype(jnp.uint8), confidence.astype(jnp.uint8)

        return label_planes

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """A model input without content, with the shape and dtype that all inputs have."""
        return self.ovs.preprocess(np.zeros((8, 8, 3), np.uint8))

    def _inputs(self, canvas: Size, images: Sequence[_Image]) -> tuple[Any, Any]:
        """Squares [rows, S, S, 3] and sizes int32 [rows, 2] on the devices; empty rows are zeros."""
        squares = np.zeros((self.rows, *self._blank.shape), self._blank.dtype)
        sizes = np.full((self.rows, 2), canvas, np.int32)
        for row, image in enumerate(images):
            if image.square is not None:
                squares[row], sizes[row] = image.square, image.size
        return shard_batch((squares, sizes), self.mesh)

    def _encode(self, images: Sequence[_Image], outputs: Any, pool: ThreadPoolExecutor) -> list[Future[LabelExample]]:
        """Waits for the devices, then starts to encode the labels in threads."""
        labels, confidences = jax.device_get(outputs)

        def encode(row: int, image: _Image) -> LabelExample:
            height, width = image.size
            label, confidence = (np.ascontiguousarray(plane[row, :height, :width]) for plane in (labels, confidences))
            return encode_label(image.id, label, confidence, self.store.dataset, image.checksum)

        return [pool.submit(encode, row, image) for row, image in enumerate(images) if image.square is not None]


def _decode_with_checksum(encoded: EncodedImage) -> tuple[np.ndarray, ImageChecksum]:
    """An image, uint8 [H, W, 3], and its checksum, which is read first: an image that changes in between is found."""
    with encoded.open() as stream:
        checksum = read_ends(stream).checksum
    return decode_image(encoded), checksum


def _chunks(items: tuple[T, ...], length: int) -> Iterator[tuple[T, ...]]:
    return (items[i : i + length] for i in range(0, len(items), length))
