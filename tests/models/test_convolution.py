"""Convolutions: the forms for the CPU are those of other platforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semiovs_jax.models import convolution
from semiovs_jax.models.convolution import convolve


def draw(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "shape", "form"),
    [
        (1, 1, 1, (9, 11), "dot"),
        (1, 2, 1, (9, 10), "dot"),
        (3, 1, 1, (6, 5), "conv"),
        (3, 2, 1, (6, 5), "conv"),
        (3, 1, 2, (9, 9), "conv"),
        (3, 1, 6, (11, 12), "dot"),
        (3, 1, 12, (11, 13), "dot"),
        (3, 1, 18, (11, 11), "dot"),
    ],
)
def test_the_form_for_the_cpu_equals_that_of_other_platforms(size, stride, dilation, shape, form):
    x, kernel = draw(2, *shape, 5, seed=0), draw(size, size, 5, 4, seed=1)
    ours = functools.partial(convolve, stride=stride, dilation=dilation)
    general = functools.partial(convolution._convolve, stride=stride, dilation=dilation)
    result, backward = jax.vjp(jax.jit(ours), x, kernel)
    expected, expected_backward = jax.vjp(general, x, kernel)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    gradient = draw(*expected.shape, seed=2)
    for found, wanted in zip(backward(gradient), expected_backward(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    lowered = {
        platform: jax.jit(ours).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert ("stablehlo.convolution" in lowered["cpu"]) == (form == "conv")
    assert all("stablehlo.convolution" in lowered[platform] for platform in ("tpu", "cuda"))


@pytest.mark.parametrize(
    ("length", "dilation", "share"), [(100, 1, 0.013), (21, 6, 0.344), (11, 6, 0.595), (11, 18, 8 / 9)]
)
def test_the_share_of_padding(length, dilation, share):
    counted = np.zeros((length, length))
    taps = [dilation * (tap - 1) for tap in range(3)]
    for row in taps:
        for column in taps:
            inside = [np.array([0 <= i + offset < length for i in range(length)]) for offset in (row, column)]
            counted += np.outer(*inside)
    expected = 1 - counted.sum() / (9 * length**2)
    assert convolution._padding_share((length, length), 3, dilation) == pytest.approx(expected)
    assert expected == pytest.approx(share, abs=1e-3)
