"""Which record comes when: the endless, seeded order of positions under each stream."""

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
    """Endless positions of a source's records: each epoch a new order of all, the parts of a mixture by their weights.

    Args:
        source: The records.
        seed: Seed of all orders.
        selection: The records to draw and how often; None: all alike.

    Raises:
        InputError: The selection leaves nothing of a part of a mixture.
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
    """Batches until a part that is drawn once has been seen whole; None where every part may be drawn again."""
    if not isinstance(source, Mixture):
        return None
    total = sum(source.weights)
    lengths = ((part, _order_of(part, 0, selection).length) for part in source.parts if part.once)
    # The first draws hold a part's share of them, give or take one.
    return min((int((length - 1) * total / part.weight // batch_size) for part, length in lengths), default=None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """Endless positions of some records, each epoch in an order of its own, or each time in the given one.

    Grain's `shuffle` takes milliseconds an element where there are fewer than some hundred records, which the
    labeled split is: more than reading the record.

    Attributes:
        start: Position of the first record.
        length: Draws in an epoch.
        seed: Seed of the orders; None: the records' own order.
        chosen: The records to draw, as positions; None: `length` of them from `start` on.
        repeats: How often each of `chosen` is drawn, relative to the others; None: all alike.
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
        return functools.lru_cache(maxsize=2)(self._draw)  # threads may work across an epoch's end

    def _draw(self, epoch: int) -> np.ndarray:
        assert self.seed is not None
        rng = np.random.default_rng([self.seed, epoch])
        if self.repeats is None:
            return rng.permutation(self.length)
        # Systematic sampling: each record as often as its share asks for, rounded up or down at random.
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
            "...); lower it, or leave the source out of the mixture"
        )
    repeats = None if selection.repeats is None or part.once else selection.repeats[inside]
    return _Order(start, int(inside.sum()), part_seed, selection.positions[inside], repeats)
