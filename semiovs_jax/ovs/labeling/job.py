"""The work of labeling images: decode, compute and write side by side."""

import collections
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipelines.images.decode import decode_image, image_size
from data_pipelines.labels.store import LabelStore
from data_pipelines.loading.worker_log import BadRecords
from data_pipelines.sources.records import Record, UnreadableError
from semiovs_jax.evaluation.buckets import Size, bucket_of, choose_buckets
from semiovs_jax.labelers import OVS
from semiovs_jax.runtime.sharding import batch_sharding, replicated, shard_batch

MAX_CANVASES = 4  # compiled shapes

_DECODED_AHEAD = 2  # batches


class Group(NamedTuple):
    """One batch. Groups follow from the whole OOD set, so that a resumed run repeats an undisturbed one's bits."""

    canvas: Size
    records: tuple[Record, ...]


class Part(NamedTuple):
    """Batches that one process labels and the store writes together.

    Attributes:
      number: place in the store's plan.
      records: all images of the part.
      groups: batches of those that can be read.
    """

    number: int
    records: tuple[Record, ...]
    groups: tuple[Group, ...]


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

    def parts(self, records: Sequence[Record]) -> list[Part]:
        """Divides the whole OOD set: batches of images that share a canvas, and what is written together."""
        sizes = list(self.pool.map(lambda record: self.bad.read(record, image_size), records))
        canvases = choose_buckets([size for size in sizes if size is not None], MAX_CANVASES)
        members: list[list[Record]] = [[] for _ in canvases]
        unreadable: list[Record] = []
        for record, size in zip(records, sizes, strict=True):
            (unreadable if size is None else members[bucket_of(size, canvases)]).append(record)
        length = self.store.part_length(len(records))
        if length is None:
            groups = self._groups(canvases, members)
            return [Part(index, group.records, (group,)) for index, group in enumerate(groups)]
        parts = []
        placed: list[tuple[Size | None, Record]] = [(None, record) for record in unreadable]
        placed += [(canvas, record) for canvas, found in zip(canvases, members, strict=True) for record in found]
        for index, start in enumerate(range(0, len(placed), length)):
            share = placed[start : start + length]
            groups = self._groups(canvases, [[r for found, r in share if found == canvas] for canvas in canvases])
            parts.append(Part(index, tuple(record for _, record in share), tuple(groups)))
        return parts

    def _groups(self, canvases: Sequence[Size], members: Sequence[Sequence[Record]]) -> list[Group]:
        return [
            Group(canvas, tuple(found[i : i + self.rows]))
            for canvas, found in zip(canvases, members, strict=True)
            for i in range(0, len(found), self.rows)
        ]

    def run(self, parts: Sequence[Part], name: str) -> int:
        """Labels what is not labeled yet.

        Args:
          parts: this process's share of what `parts` gave.
          name: title of the progress bar.

        Returns:
          Number of images labeled now.
        """
        pending = [part for part in parts if not self.store.is_written(part.number) or self._unlabeled(part.records)]
        work = [(part.number, group) for part in pending for group in part.groups if self._unlabeled(group.records)]
        left = Counter(index for index, _ in work)  # groups of each part
        label = self._label_function()
        weights = jax.device_put(self.ovs.weights, replicated(self.mesh))
        images = sum(len(part.records) for part in parts)
        todo = sum(self._unlabeled(part.records) for part in pending)
        labeled = 0
        with tqdm(desc=name, total=images, initial=images - todo, unit="image") as progress:

            def collect(index: int, writes: list[Future[None]]) -> None:
                nonlocal labeled
                for write in writes:
                    write.result()
                labeled += len(writes)
                left[index] -= 1
                if not left[index]:
                    self.store.write_part(index)
                progress.update(len(writes))
                if bad := len(self.bad.records.names()):
                    progress.set_postfix(bad=bad)

            for part in pending:
                if part.number not in left:  # all its images are labeled elsewhere, or bad
                    self.store.write_part(part.number)
            # The device computes a batch while the one before it is encoded and the ones after it are decoded.
            in_flight: tuple[int, _Decoded, Any] | None = None
            writes: tuple[int, list[Future[None]]] | None = None
            for index, group, decoded in self._decoded_ahead(work):
                launched = (index, decoded, label(weights, *self._batch(group, decoded), canvas=group.canvas))
                if writes:
                    collect(*writes)
                writes = self._write(*in_flight) if in_flight else None
                in_flight = launched
            if writes:
                collect(*writes)
            if in_flight:
                collect(*self._write(*in_flight))
        return labeled

    def _unlabeled(self, records: Sequence[Record]) -> int:
        return sum(not self.store.is_labeled(record.id) for record in records)

    @property
    def rows(self) -> int:
        """Images in a batch: `batch_size`, rounded up to the devices."""
        return -(-self.batch_size // self.mesh.size) * self.mesh.size

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """A prepared image without content: the shape and dtype of all of them."""
        return self.ovs.preprocess(np.zeros((8, 8, 3), np.uint8))

    def _label_function(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        @functools.partial(jax.jit, static_argnames="canvas", out_shardings=batch_sharding(self.mesh))
        def label_planes(
            weights: Any, image: jax.Array, size: jax.Array, *, canvas: Size
        ) -> tuple[jax.Array, jax.Array]:
            found = self.ovs.label(weights, image.astype(jnp.float32), label_size=canvas, size=size)
            label = jnp.where(found.valid, found.label, self.ignore_index)
            confidence = jnp.where(found.valid, jnp.round(255 * found.confidence), 0)
            return label.astype(jnp.uint8), confidence.astype(jnp.uint8)

        return label_planes

    def _decoded_ahead(self, work: Sequence[tuple[int, Group]]) -> Iterator[tuple[int, Group, _Decoded]]:
        waiting: collections.deque[tuple[int, Group, list[Future[_Image | None]]]] = collections.deque()
        for index, group in work:
            waiting.append((index, group, [self.pool.submit(self._decode, record) for record in group.records]))
            if len(waiting) > _DECODED_AHEAD:
                ready, first, futures = waiting.popleft()
                yield ready, first, [future.result() for future in futures]
        for ready, first, futures in waiting:
            yield ready, first, [future.result() for future in futures]

    def _decode(self, record: Record) -> _Image | None:
        if self.store.is_labeled(record.id):
            return None
        image = self.bad.read(record, decode_image)
        if image is None:
            return None
        return _Image(record.id, self.ovs.preprocess(image), image.shape[:2])

    def _batch(self, group: Group, decoded: _Decoded) -> tuple[Any, Any]:
        """Squares [rows, S, S, 3] and sizes int32 [rows, 2] on the devices; empty rows are zeros."""
        squares = np.zeros((self.rows, *self._blank.shape), self._blank.dtype)
        sizes = np.full((self.rows, 2), group.canvas, np.int32)
        for row, image in enumerate(decoded):
            if image is not None:
                squares[row], sizes[row] = image.square, image.size
        return shard_batch((squares, sizes), self.mesh)

    def _write(self, index: int, decoded: _Decoded, outputs: Any) -> tuple[int, list[Future[None]]]:
        """Waits for the device, then encodes and writes a group of part `index` in threads."""
        labels, confidences = jax.device_get(outputs)

        def write(row: int, image: _Image) -> None:
            height, width = image.size
            planes = (np.ascontiguousarray(plane[row, :height, :width]) for plane in (labels, confidences))
            self.store.write(image.id, *planes)

        return index, [self.pool.submit(write, row, image) for row, image in enumerate(decoded) if image is not None]
