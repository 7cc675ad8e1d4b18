"""Shuffling: the infinite, seeded order in which each stream reads its records."""

import dataclasses
import functools
import sys

import grain
import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.loading.selection import Selection
from data_pipelines.sources.mixture import Mixture, Part
from data_pipelines.sources.records import Source


def draw_positions(source: Source, seed: int, selection: Selection | None = None) -> grain.MapDataset:
    """The infinite sequence of positions of a source's records.

    Each epoch has a new shuffle of all records. The parts of a mixture are drawn by their weights.

    Args:
        source: The records.
        seed: Seed of all shuffles.
        selection: The records to draw, and how often; None: all records, equally often.

    Raises:
        InputError: The selection leaves no record of a part of a mixture.
    """
    parts = source.parts if isinstance(source, Mixture) else [Part(source)]
    orders = []
    for index, part in enumerate(parts):
        part_seed = seed if len(parts) == 1 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        orders.append(grain.MapDataset.source(_order_of(part, part_seed, selection)))
    if len(parts) == 1:
        return orders[0]
    return grain.MapDataset.mix(orders, [part.weight for part in parts])


def batches_at_most(source: Source, batch_size: int, selection: Selection | None = None) -> int | None:
    """Number of batches until a part with `once` is used up; None if no part has it."""
    if not isinstance(source, Mixture):
        return None
    total = sum(source.weights)
    lengths = ((part, _order_of(part, 0, selection).length) for part in source.parts if part.once)
    # Among the first draws, the number from a part is its share of them, plus or minus one.
    return min((int((length - 1) * total / part.weight // batch_size) for part, length in lengths), default=None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """Infinite positions of some records, shuffled in each epoch or always in the given order.

    Used instead of Grain's `shuffle`, which takes milliseconds an element for fewer than some hundred records, as in
    the labeled split. That is more than reading the record.

    Attributes:
        start: Position of the first record.
        length: Number of draws in an epoch.
        seed: Seed of the shuffles; None: no shuffling.
        chosen: Positions of the records to draw; None: `length` records from `start` on.
        repeats: How often each of `chosen` is drawn relative to the others; None: all equally often.
    """

    start: int
    length: int
    seed: int | None
    chosen: np.ndarray | None = None
    repeats: np.ndarray | None = None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, step = divmod(index, self.length)
        place = step if self.seed is None else int(self._epochs(epoch)[step])
        return self.start + place if self.chosen is None else int(self.chosen[place])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_epochs"}

    @functools.cached_property
    def _epochs(self) -> "functools._lru_cache_wrapper[np.ndarray]":
        return functools.lru_cache(maxsize=2)(self._draw)  # threads may be in two epochs at once

    def _draw(self, epoch: int) -> np.ndarray:
        assert self.seed is not None
        rng = np.random.default_rng([self.seed, epoch])
        if self.repeats is None:
            return rng.permutation(self.length)
        # Systematic sampling: each record as often as its share, rounded up or down at random.
        bounds = np.cumsum(self.repeats) / self.repeats.sum()
        drawn = np.searchsorted(bounds, (np.arange(self.length) + rng.random()) / self.length, side="right")
        return rng.permutation(np.minimum(drawn, self.length - 1))


def _order_of(part: Part, seed: int, selection: Selection | None) -> _Order:
    start, count = part.start, len(part.source)
    part_seed = None if part.once else seed
    if selection is None:
        return _Order(start, count, part_seed)
    inside = (selection.positions >= start) & (selection.positions < start + count)
    if not inside.any():
        raise InputError(
            f"config.data.ood_min_foreground leaves none of the {count} images of a source ({part.source.ids()[0]}, "
            "...); lower it, or remove the source from the mixture"
        )
    repeats = None if selection.repeats is None or part.once else selection.repeats[inside]
    return _Order(start, int(inside.sum()), part_seed, selection.positions[inside], repeats)
