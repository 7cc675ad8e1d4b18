import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semiovs_jax.evaluation.buckets import bucket_of, choose_buckets

SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=40)


@given(SIZES, st.integers(1, 5))
def test_every_image_fits_one_of_few(sizes, maximum):
    buckets = choose_buckets(sizes, maximum, multiple=16)
    assert 1 <= len(buckets) <= maximum
    for size in sizes:
        bucket = buckets[bucket_of(size, buckets)]
        assert size[0] <= bucket[0]
        assert size[1] <= bucket[1]
    assert all(side % 16 == 0 for bucket in buckets for side in bucket)
    assert [h * w for h, w in buckets] == sorted(h * w for h, w in buckets)


@given(SIZES)
def test_order_does_not_matter(sizes):
    assert choose_buckets(sizes, 3) == choose_buckets(sizes[::-1], 3)


def test_portrait_and_landscape_stay_apart():
    assert choose_buckets([(480, 640)] * 9 + [(640, 480)] * 3 + [(470, 640)], 2, multiple=1) == [(480, 640), (640, 480)]


def test_no_images():
    assert choose_buckets([], 4) == []


def test_many_sizes_are_quick():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(100, 641, (20_000, 2)).tolist()]
    start = time.perf_counter()
    assert len(choose_buckets(sizes, 4)) == 4
    assert time.perf_counter() - start < 10
