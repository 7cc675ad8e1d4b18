"""Class-balanced draw of the images to label: each class is in about equally many of them.

The rule draws one image at a time. It considers the classes of the images that are not drawn yet, and takes the class
with the fewest drawn images. Ties go to the class with the fewest images in total, then to the first class. It draws
the next image with this class, in an order shuffled by the seed. Images without a class come last.

Guarantee: if N images are drawn and C classes occur, each class is in at least min(N // C, all images with the class)
of them. Proof: while a class has fewer, the rule takes only classes with fewer than N // C drawn images, each at most
N // C times, which ends before N draws. If N < C, each draw adds a class that was in no drawn image, the rarest first.
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
        present: bool [images, classes], True where the image has the class.
        count: Number of images to draw, at most all.
        seed: Not negative; equal seeds draw equal images.

    Returns:
        int [count], positions of the drawn images, ascending.
    """
    images, classes = present.shape
    if not 0 <= count <= images:
        raise ValueError(f"cannot draw {count} of {images} images")
    order = np.random.default_rng(seed).permutation(images)
    totals = present.sum(axis=0)
    waiting = [list(order[present[order, label]][::-1]) for label in range(classes)]  # the next image is the last entry
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
    """Decodes labels and finds the classes in each.

    Args:
        labels: The label images.
        info: The dataset.
        num_threads: Number of labels decoded in parallel.

    Returns:
        bool [labels, classes], True where the label has a pixel of the class.

    Raises:
        InputError: Labels are unreadable or not masks of the dataset's indices; the message names the first few.
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
