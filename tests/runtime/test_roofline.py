"""Least times of a program on chips of a torus."""

import pytest

from semiovs_jax.runtime.roofline import CHIPS, roofline

V5E = CHIPS["TPU v5 lite"]  # 197e12 FLOPs, 819e9 bytes of memory and 200e9 bytes of links a second


def test_a_large_all_reduce_takes_what_the_links_take_and_a_small_one_what_its_hops_take():
    found = roofline(V5E, 1.97e12, 1e9, [4e8, 4], 8)
    assert found.links == pytest.approx(2 * 4e8 * 7 / 8 / 200e9 + 8e-6)  # 2 x 4 chips: 1 and 3 hops, there and back
    assert (found.seconds, found.apart) == pytest.approx((10e-3, 13.508e-3))
    assert found.limit == "products"


@pytest.mark.parametrize(("devices", "hops"), [(1, 0), (2, 2), (4, 4), (16, 12), (32, 20), (256, 32)])
def test_hops_of_pods(devices: int, hops: int):
    """Axes of fewer than 16 chips are lines, whose ends are not linked; one chip waits for nobody."""
    assert roofline(V5E, 0, 0, [4], devices).links == pytest.approx(hops * 1e-6)
