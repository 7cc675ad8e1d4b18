"""The streams of training records, zipped into batches, and the validation records.

    positions of each stream (shuffled, repeated) -> random views of its records -> zip of the streams
    -> this process's rows -> batch -> prefetch

Every stream is shuffled anew each epoch, repeated without end and drawn from independently, so streams of
different lengths run side by side. What a step receives depends on the seed and the step alone, never on
the number of threads, worker processes or processes that train.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.images import transforms
from data_pipelines.images.decode import decode_confidence, decode_image, decode_label, image_size, size_fault
from data_pipelines.loading.batches import BatchIterator
from data_pipelines.loading.options import Options
from data_pipelines.loading.order import batches_at_most, draw_positions
from data_pipelines.loading.selection import Selection
from data_pipelines.loading.worker_log import BadRecords, HeldRecords
from data_pipelines.sources.records import Record, Source, UnreadableError

STREAMS = ("labeled", "unlabeled", "mix", "ood")

Element = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainData:
    """The training input of one process.

    Attributes:
        iterator: Yields `{stream: {field: array}}`, with arrays of `batch_size // process_count` rows. Its
            position is saved and restored exactly by `grain.checkpoint` or `get_state` and `set_state`; `close` ends
            its threads and processes.
        lengths: Number of records by stream.
        steps_per_epoch: Full batches in one pass over the unlabeled records (the labeled ones where there
            is no unlabeled stream), at least 1.
        steps_at_most: Steps until an OOD source that is drawn once has been seen whole; None if there is none.
    """

    iterator: BatchIterator
    lengths: dict[str, int]
    steps_per_epoch: int
    steps_at_most: int | None
    _bad: BadRecords

    @property
    def bad_records(self) -> tuple[str, ...]:
        """Ids of the records that this process found unreadable so far, prefetched batches included."""
        return self._bad.names()


def make_train_iterator(
    sources: Mapping[str, Source],
    info: DatasetInfo,
    options: Options,
    *,
    batch_size: int,
    seed: int,
    selection: Selection | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainData:
    """Builds the iterator over training batches.

    Every stream holds `image` uint8 [B, S, S, 3] (0 on padding), `valid` bool [B, S, S] (False on padding),
    `index` int32 [B] (position of the record in its source) and `substituted` int32 [B] (how many unreadable
    records were passed over to fill the row). A source with labels adds `label` uint8 [B, S, S], the ignore index on
    padding; one with confidences `confidence` uint8 [B, S, S].

    Args:
        sources: The records by stream, out of `STREAMS`; see `streams.train_sources`.
        info: The dataset.
        options: How records are read and shown.
        batch_size: Rows of each stream in a global batch.
        seed: Seed of all shuffles and draws.
        selection: Which records of the "ood" stream are drawn, and how often; None: all alike.
        process_index: This process; it gets the `process_index`-th block of rows of each global batch.
        process_count: Number of processes.

    Raises:
        InputError: The batch cannot be divided among the processes. The iterator raises it when more records than
            `max_bad_records` turn out to be unreadable.
    """
    if batch_size <= 0 or batch_size % process_count:
        raise InputError(
            f"config.batch_size={batch_size} must be a positive multiple of the {process_count} process(es)"
        )
    bad, held = BadRecords(options.max_bad_records), HeldRecords()
    draw = functools.partial(
        transforms.draw_geometry,
        crop_size=options.crop_size,
        scale_range=options.scale_range,
        scale_short_side=options.scale_short_side,
    )
    datasets = []
    for name, source in sources.items():
        # One seed a stream, whichever other streams there are: mix is shuffled independently of unlabeled.
        order_seed, view_seed = (int(s) for s in np.random.SeedSequence([seed, STREAMS.index(name)]).generate_state(2))
        order = draw_positions(source, order_seed, selection if name == "ood" else None)
        view = _View(source, info, bad, held, options.crop_size, draw, options.scaled_decode)
        datasets.append(order.random_map(view, seed=view_seed))
    rows = grain.experimental.ZipMapDataset(datasets).map(functools.partial(_named, names=tuple(sources)))
    local = _ProcessRows(rows, batch_size, process_index, process_count)
    iterator = BatchIterator(
        local.batch(batch_size // process_count, drop_remainder=True),
        num_workers=options.num_workers,
        num_threads=options.num_threads,
        prefetch=options.prefetch,
        stall_seconds=options.stall_seconds,
        bad=bad,
        held=held,
    )
    lengths = {name: len(source) for name, source in sources.items()}
    most = batches_at_most(sources["ood"], batch_size, selection) if "ood" in sources else None
    return TrainData(iterator, lengths, steps_per_epoch(lengths, batch_size), most, bad)


def steps_per_epoch(lengths: Mapping[str, int], batch_size: int) -> int:
    """Full batches in one pass over the unlabeled records; see `TrainData`.

    Args:
        lengths: Number of records by stream.
        batch_size: Rows of each stream in a global batch.
    """
    return max(1, lengths.get("unlabeled", lengths.get("labeled", 0)) // batch_size)


class ValidationRecords(Sequence):
    """The validation images with their labels, at their own sizes, decoded when asked for.

    Args:
        source: The validation split.
        info: The dataset.
        sizes: (height, width) of every image, if they are known; otherwise the headers are read when asked for.
    """

    def __init__(self, source: Source, info: DatasetInfo, sizes: Sequence[tuple[int, int]] | None = None):
        self._source = source
        self._info = info
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        """One record: `id` str, `image` uint8 [H, W, 3], `label` uint8 [H, W]; a list of them for a slice.

        Raises:
            InputError: The image or label cannot be used; evaluation never substitutes.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _decode(self._source[index % len(self)], self._info)

    def __iter__(self) -> Iterator[Element]:
        return (self[index] for index in range(len(self)))

    def ids(self) -> Sequence[str]:
        """The ids of all images, in order."""
        return self._source.ids()

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """(height, width) of every image."""
        if self._sizes is None:
            self._sizes = [image_size(self._source[index].image) for index in range(len(self))]
        return self._sizes


class _ProcessRows(grain.MapDataset):
    """The rows of each global batch that belong to one process: a contiguous block, as in a sharded array.

    Slicing `[process_index::process_count]` would deal out the same rows in another order, and a row's place
    in the batch decides its augmentations on the device.
    """

    def __init__(self, parent: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
        super().__init__(parent)
        self._batch_size = batch_size
        self._local_size = batch_size // process_count
        self._offset = self._local_size * process_index

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._local_size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._local_size)
        return self._parent[batch * self._batch_size + self._offset + row]


def _named(elements: tuple[Element, ...], names: tuple[str, ...]) -> dict[str, Element]:
    return dict(zip(names, elements, strict=True))


@dataclasses.dataclass(frozen=True, repr=False)
class _View(grain.transforms.RandomMap):
    """Turns a position into a random view of the record there, or of the first one after it that can be read."""

    source: Source
    info: DatasetInfo
    bad: BadRecords
    held: HeldRecords
    crop_size: int
    draw: Callable[[np.random.Generator, transforms.Size], transforms.Geometry]
    scaled_decode: bool

    def random_map(self, element: int, rng: np.random.Generator) -> Element:
        for substituted in range(len(self.source)):
            position = (element + substituted) % len(self.source)
            record = self.source[position]
            with self.held.hold(record.image.name):
                try:
                    geometry = self.draw(rng, image_size(record.image)) if self.scaled_decode else None
                    decoded = _decode(record, self.info, geometry.size if geometry else None)
                except UnreadableError as error:
                    self.bad.add(record.id, error)
                    continue
                geometry = geometry or self.draw(rng, decoded["image"].shape[:2])
                view = _shown(decoded, geometry, self.info, self.crop_size)
            return {**view, "index": np.int32(position), "substituted": np.int32(substituted)}
        count, bad = len(self.source), ", ".join(self.bad.names()[:5])
        raise InputError(f"none of the {count} records of a stream can be read: {bad}")


def _decode(record: Record, info: DatasetInfo, at_least: transforms.Size | None = None) -> Element:
    image = decode_image(record.image, at_least)
    element: Element = {"id": record.id, "image": image}
    if record.label is not None:
        element["label"] = decode_label(record.label, info)
    if record.confidence is not None:
        element["confidence"] = decode_confidence(record.confidence)
    size = image_size(record.image) if at_least else image.shape[:2]
    for plane in ("label", "confidence"):
        if plane in element and element[plane].shape != size:
            raise InputError(size_fault(record, plane, size, element[plane].shape))
    return element


def _shown(decoded: Element, geometry: transforms.Geometry, info: DatasetInfo, crop_size: int) -> Element:
    view: Element = {
        "image": transforms.view_image(decoded["image"], geometry, crop_size),
        "valid": transforms.view_valid(geometry, crop_size),
    }
    for plane, fill in (("label", info.ignore_index), ("confidence", 0)):
        if plane in decoded:
            view[plane] = transforms.view_plane(decoded[plane], geometry, crop_size, fill)
    return view
