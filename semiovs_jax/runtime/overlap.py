"""Overlaps the stages of a loop."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yields each item after the next item is made: work that an item has started continues meanwhile."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields items that a thread makes, one while the caller uses the one before."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]
