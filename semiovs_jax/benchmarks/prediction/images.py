"""Images of many sizes that both sides make for themselves; their pixels are noise, which costs the same."""

import numpy as np


def draw_sizes(count: int, longest: int) -> list[tuple[int, int]]:
    """Different (height, width), both sides from half of `longest` to `longest` pixels."""
    rng, found = np.random.default_rng(0), dict[tuple[int, int], None]()
    while len(found) < count:
        height, width = rng.integers(longest // 2, longest, 2, endpoint=True)
        found[int(height), int(width)] = None
    return list(found)


def draw_images(first: int, last: int, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """The images `first` up to `last`: uint8 [H, W, 3], their sizes in turn."""
    return [
        np.random.default_rng([1, index]).integers(0, 256, (*sizes[index % len(sizes)], 3), np.uint8)
        for index in range(first, last)
    ]
