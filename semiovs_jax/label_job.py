"""The work of labeling images: decode, compute and write side by side."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipelines.decode import decode_image, image_size
from data_pipelines.sources import Record, UnreadableError
from data_pipelines.worker_notes import BadRecords
from semiovs_jax.buckets import Size, bucket_of, choose_buckets
from semiovs_jax.label_store import LabelStore
from semiovs_jax.labelers import OVS
from semiovs_jax.sharding import batch_sharding, replicated, shard_batch

MAX_CANVASES = 4  # compiled shapes

_DECODED_AHEAD = 2  # batches


class Group(NamedTuple):
    """One batch. Groups follow from the whole OOD set, so that a resumed run repeats an undisturbed one's bits."""

    canvas: Size
    records: tuple[Record, ...]


class _Image(NamedTuple):
    id: str
    square: np.ndarray  # [S, S, 3], as the model prepares it
    size: Size


_Decoded = list["_Image | None"]  # None: labeled already, or bad


@dataclasses.dataclass(frozen=True)
class BadImages:
    """Notes unreadable images on disk and counts them against the limit."""

    store: LabelStore
    records: BadRecords

    def read(self, record: Record, read: Callable[[Any], Any]) -> Any:
        """`read(record.image)`, or None if the image is bad."""
        try:
            return read(record.image)
        except UnreadableError as error:
            self.store.write_bad(record.id, str(error))
            self.records.add(record.id, error)
            return None


@dataclasses.dataclass(frozen=True)
class Job:
    """Labels groups of images: decode, compute and write side by side."""

    store: LabelStore
    ovs: OVS
    mesh: Mesh
    batch_size: int
    ignore_index: int
    bad: BadImages
    pool: ThreadPoolExecutor

    def groups(self, records: Sequence[Record]) -> list[Group]:
        """Batches of images that share a canvas."""
        sizes = list(self.pool.map(lambda record: self.bad.read(record, image_size), records))
        readable = [(record, size) for record, size in zip(records, sizes, strict=True) if size is not None]
        canvases = choose_buckets([size for _, size in readable], MAX_CANVASES)
        members: list[list[Record]] = [[] for _ in canvases]
        for record, size in readable:
            members[bucket_of(size, canvases)].append(record)
        rows = self.rows
        return [
            Group(canvas, tuple(found[i : i + rows]))
            for canvas, found in zip(canvases, members, strict=True)
            for i in range(0, len(found), rows)
        ]

    def run(self, groups: Sequence[Group], name: str) -> tuple[set[str], np.ndarray]:
        """Labels what is not labeled yet.

        Args:
          groups: this process's share of what `groups` gave.
          name: title of the progress bar.

        Returns:
          Ids of the images labeled now, and their pixels per label, int64 [256].
        """
        pending = [group for group in groups if any(not self.store.is_labeled(r.id) for r in group.records)]
        label = self._label_function()
        weights = jax.device_put(self.ovs.weights, replicated(self.mesh))
        labeled: set[str] = set()
        histogram = np.zeros(256, np.int64)
        images = sum(len(group.records) for group in groups)
        todo = sum(not self.store.is_labeled(r.id) for group in pending for r in group.records)
        with tqdm(desc=name, total=images, initial=images - todo, unit="image") as progress:

            def collect(writes: list[Future[tuple[str, np.ndarray]]]) -> None:
                for id_, pixels in (write.result() for write in writes):
                    labeled.add(id_)
                    np.add(histogram, pixels, out=histogram)
                progress.update(len(writes))
                if bad := len(self.bad.records.names()):
                    progress.set_postfix(bad=bad)

            # The device computes a batch while the one before it is encoded and the ones after it are decoded.
            in_flight: tuple[_Decoded, Any] | None = None
            writes: list[Future[tuple[str, np.ndarray]]] = []
            for group, decoded in self._decoded_ahead(pending):
                launched = (decoded, label(weights, *self._batch(group, decoded), canvas=group.canvas))
                collect(writes)
                writes = self._write(in_flight) if in_flight else []
                in_flight = launched
            collect(writes)
            collect(self._write(in_flight) if in_flight else [])
        return labeled, histogram

    @property
    def rows(self) -> int:
        """Images in a batch: `batch_size`, rounded up to the devices."""
        return -(-self.batch_size // self.mesh.size) * self.mesh.size

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """A prepared image without content: the shape and dtype of all of them."""
        return self.ovs.prepare(np.zeros((8, 8, 3), np.uint8))

    def _label_function(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        @functools.partial(jax.jit, static_argnames="canvas", out_shardings=batch_sharding(self.mesh))
        def label_planes(
            weights: Any, image: jax.Array, size: jax.Array, *, canvas: Size
        ) -> tuple[jax.Array, jax.Array]:
            found = self.ovs.label(weights, image.astype(jnp.float32), canvas=canvas, size=size)
            label = jnp.where(found.valid, found.label, self.ignore_index)
            confidence = jnp.where(found.valid, jnp.round(255 * found.confidence), 0)
            return label.astype(jnp.uint8), confidence.astype(jnp.uint8)

        return label_planes

    def _decoded_ahead(self, groups: Sequence[Group]) -> Iterator[tuple[Group, _Decoded]]:
        waiting: collections.deque[tuple[Group, list[Future[_Image | None]]]] = collections.deque()
        for group in groups:
            waiting.append((group, [self.pool.submit(self._decode, record) for record in group.records]))
            if len(waiting) > _DECODED_AHEAD:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in waiting:
            yield ready, [future.result() for future in futures]

    def _decode(self, record: Record) -> _Image | None:
        if self.store.is_labeled(record.id):
            return None
        image = self.bad.read(record, decode_image)
        if image is None:
            return None
        return _Image(record.id, self.ovs.prepare(image), image.shape[:2])

    def _batch(self, group: Group, decoded: _Decoded) -> tuple[Any, Any]:
        """Squares [rows, S, S, 3] and sizes int32 [rows, 2] on the devices; empty rows are zeros."""
        squares = np.zeros((self.rows, *self._blank.shape), self._blank.dtype)
        sizes = np.full((self.rows, 2), group.canvas, np.int32)
        for row, image in enumerate(decoded):
            if image is not None:
                squares[row], sizes[row] = image.square, image.size
        return shard_batch((squares, sizes), self.mesh)

    def _write(self, launched: tuple[_Decoded, Any]) -> list[Future[tuple[str, np.ndarray]]]:
        """Waits for the device, then encodes and writes in threads."""
        decoded, outputs = launched
        labels, confidences = jax.device_get(outputs)

        def write(row: int, image: _Image) -> tuple[str, np.ndarray]:
            height, width = image.size
            label = np.ascontiguousarray(labels[row, :height, :width])
            self.store.write(image.id, label, np.ascontiguousarray(confidences[row, :height, :width]))
            return image.id, np.bincount(label.ravel(), minlength=256)

        return [self.pool.submit(write, row, image) for row, image in enumerate(decoded) if image is not None]
