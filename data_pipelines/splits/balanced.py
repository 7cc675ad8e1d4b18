"""Draws which images of a dataset are labeled, so that every class is in about equally many of them.

The rule, again and again: of the classes that some image not yet drawn has, take the one that is in the fewest images
drawn so far (of equals the one that the fewest images have at all, then the first), and draw the next image that has
it, in an order shuffled by the seed. Images of no class come last.

So, of N images drawn and C classes that occur, every class is in at least min(N // C, images that have it). For while
a class falls short of that, the rule takes only classes in fewer than N // C images drawn, each at most N // C times,
and that is over before N draws. Of fewer than C images, each brings a class that was in none, the rarest first.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError, first_few
from data_pipelines.images.decode import decode_label
from data_pipelines.sources.records import EncodedImage


def draw_balanced(present: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws images by the rule above.

    Args:
        present: bool [images, classes], whether a class is in an image.
        count: Number of images to draw, at most all.
        seed: Not negative; the same seed draws the same images.

    Returns:
        int [count], the images drawn, ascending.
    """
    images, classes = present.shape
    if not 0 <= count <= images:
        raise ValueError(f"cannot draw {count} of {images} images")
    order = np.random.default_rng(seed).permutation(images)
    totals = present.sum(axis=0)
    waiting = [list(order[present[order, label]][::-1]) for label in range(classes)]  # the next one is the last
    drawn = np.zeros(images, bool)
    counts = np.zeros(classes, int)
    for _ in range(count):
        for queue in waiting:
            while queue and drawn[queue[-1]]:
                queue.pop()
        if left := [label for label in range(classes) if waiting[label]]:
            rarest = min(left, key=lambda label: (counts[label], totals[label]))
            image = waiting[rarest].pop()
        else:
            image = order[~drawn[order]][0]
        drawn[image] = True
        counts += present[image]
    return np.flatnonzero(drawn)


def classes_present(labels: Sequence[EncodedImage], info: DatasetInfo, num_threads: int = 8) -> np.ndarray:
    """Decodes labels and says which classes they hold.

    Args:
        labels: The label images.
        info: The dataset.
        num_threads: Labels that are decoded at a time.

    Returns:
        bool [labels, classes], whether a pixel of a label is of a class.

    Raises:
        InputError: Labels cannot be read or are no planes of the dataset's indices; the first few are named.
    """

    def look(label: EncodedImage) -> np.ndarray | str:
        try:
            return np.bincount(decode_label(label, info).ravel(), minlength=256)[: info.num_classes] > 0
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(look, labels))
    if faults := [fault for fault in found if isinstance(fault, str)]:
        raise InputError(f"{len(faults)} of {len(labels)} labels cannot be used: {first_few(faults)}")
    return np.stack(found)
