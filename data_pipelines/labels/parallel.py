"""Calls a short function many times in threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

_CHUNK = 64  # calls: to hand over a single one takes longer than to read a small file


def map_in_chunks(pool: Executor, function: Callable[[T], Result], items: Sequence[T]) -> Iterator[Result]:
    """The results of the function for all items, in order."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    for results in pool.map(lambda chunk: list(map(function, chunk)), chunks):
        yield from results
