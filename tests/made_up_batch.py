"""A training batch that nobody photographed."""

from collections.abc import Iterable

import numpy as np


def made_up_batch(streams: Iterable[str], count: int, size: int) -> dict[str, dict[str, np.ndarray]]:
    """Of each stream, `count` random images of `size` x `size` pixels, all valid, and labels of class 0."""
    rng = np.random.default_rng(0)
    shape = (count, size, size)
    return {
        name: {
            "image": rng.integers(0, 256, (*shape, 3), np.uint8),
            "valid": np.ones(shape, bool),
            "label": np.zeros(shape, np.uint8),
        }
        for name in streams
    }
