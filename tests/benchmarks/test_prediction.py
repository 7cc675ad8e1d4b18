import numpy as np

from semiovs_jax.benchmarks.prediction.__main__ import compare, format_rounds
from semiovs_jax.benchmarks.prediction.images import draw_images, draw_sizes


def test_both_sides_draw_the_same_images_of_different_sizes():
    sizes = draw_sizes(40, 200)
    assert len(set(sizes)) == 40
    assert all(100 <= side <= 200 for size in sizes for side in size)
    first, second = draw_images(38, 42, sizes), draw_images(40, 42, sizes)
    assert [image.shape[:2] for image in first] == [*sizes[38:], *sizes[:2]]
    np.testing.assert_array_equal(first[2], second[0])


def test_differences_are_counted():
    ours = {"label0": np.array([[0, 1]]), "confidence0": np.array([[0.5, 0.25]])}
    theirs = {"label0": np.array([[0, 2]]), "confidence0": np.array([[0.5, 0.75]])}
    assert compare(theirs, ours) == "1 images: 1 of 2 labels differ, confidences by 5.0e-01 at most"


def test_ratios_are_those_of_rounds():
    def rounds(*seconds: float) -> list[dict[str, float]]:
        return [{"batches": 10, "seconds": s, "core_seconds": 2 * s, "peak_bytes": 1e9} for s in seconds]

    lines = format_rounds({"torch": rounds(4, 6), "ours": rounds(2, 2)}).splitlines()
    assert lines[1].startswith(
        "ours   5.00 images/s, 0.400 core-seconds an image, peak memory of each round 1.00 1.00 GB"
    )
    assert lines[2:] == [
        "ours over PyTorch by the clock: 2.50 (2.00 to 3.00)",
        "ours over PyTorch a core-second: 2.50 (2.00 to 3.00)",
    ]
