"""Few shapes hold images of all sizes."""

import math

from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.images.transforms import short_side_size
from semiovs_jax.prediction.shapes import Shape, Shapes

SIDES = st.integers(1, 3000)
CALLS = st.lists(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), min_size=1, max_size=12)


def own(size: tuple[int, int]) -> tuple[int, int]:
    return size


def at_least_64(size: tuple[int, int]) -> tuple[int, int]:
    return short_side_size(size, 64) if min(size) < 64 else size


def assert_holds(shape: Shape, size: tuple[int, int], seen: tuple[int, int]) -> None:
    assert all(a >= b for a, b in zip(shape.image + shape.input, size + seen, strict=True))
    assert shape.resized or (seen == size and shape.image == shape.input)


@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=40), st.integers(1, 5), st.sampled_from([own, at_least_64])
)
def test_the_images_of_one_call_share_few_shapes(sizes, maximum, input_size):
    shapes = Shapes(input_size, maximum, size_multiple=14)
    found = shapes.provide(sizes)
    assert len(set(found)) <= maximum
    for shape, size in zip(found, sizes, strict=True):
        assert_holds(shape, size, input_size(size))
        assert all(side % 14 == 0 for side in shape.input)
    assert shapes.provide(sizes) == found


@given(CALLS, st.integers(1, 5), st.sampled_from([own, at_least_64]))
def test_later_calls_add_few(calls, maximum, input_size):
    shapes, made = Shapes(input_size, maximum, size_multiple=1), set()
    for sizes in calls:
        for shape, size in zip(shapes.provide(sizes), sizes, strict=True):
            assert_holds(shape, size, input_size(size))
            made.add(shape)
        assert len(shapes.known) <= maximum
    longest = max(max(input_size(size)) for sizes in calls for size in sizes)
    squares = 2 * math.log2(longest / 32 + 2) + 2  # with and without resizing
    assert len(made) <= maximum + squares


def test_a_small_image_does_not_fill_a_large_shape_while_others_are_left():
    shapes = Shapes(own, 4, size_multiple=1)
    shapes.provide([(1000, 1500)])
    assert shapes.provide([(60, 90)]) == [Shape((64, 96), (64, 96), False)]
    assert shapes.provide([(70, 100), (900, 1400)])[1].image == (1024, 1504)
