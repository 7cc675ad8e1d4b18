import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax.models.layers import (
    ConvNorm,
    interpolation_matrix,
    masked_variants,
    resize_bilinear,
    split_variants,
    zero_outside,
)
from semiovs_jax.models.normalization import BatchNorm

lengths = st.integers(1, 40)


@functools.partial(jax.jit, static_argnames="align_corners")
def padded_matrix(source: jax.Array, target: jax.Array, *, align_corners: bool) -> jax.Array:
    return interpolation_matrix(source, target, (40, 40), align_corners=align_corners)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(lengths, lengths), min_size=3, max_size=3), st.booleans())
def test_matrices_of_traced_lengths_interpolate_linearly_with_zeros_around(pairs, align_corners):
    source, target = (np.array(lengths, np.int32) for lengths in zip(*pairs, strict=True))
    matrices = np.asarray(padded_matrix(source, target, align_corners=align_corners))
    for (s, t), matrix in zip(pairs, matrices, strict=True):
        values, i = np.random.default_rng(s).normal(size=s), np.arange(t)
        aligned, edges = i * (s - 1) / max(t - 1, 1), (i + 0.5) * s / t - 0.5
        expected = np.interp(aligned if align_corners else edges, np.arange(s), values)
        np.testing.assert_allclose(matrix[:t, :s] @ values, expected, atol=1e-5)
        assert np.count_nonzero(matrix) == np.count_nonzero(matrix[:t, :s])


@pytest.mark.parametrize("align_corners", [True, False])
def test_matrix_of_static_lengths(align_corners):
    static = interpolation_matrix(7, 12, (12, 7), align_corners=align_corners)
    padded = padded_matrix(np.array([7]), np.array([12]), align_corners=align_corners)[0]
    np.testing.assert_array_equal(static, padded[:12, :7])


def test_resize_matches_torch():
    # torch 2.13: F.interpolate(torch.tensor([[[[0., 3.], [6., 12.]]]]), size=(3, 4), mode="bilinear", ...)
    x = jnp.array([[0.0, 3.0], [6.0, 12.0]])[None, :, :, None]
    aligned = [[0, 1, 2, 3], [3, 4.5, 6, 7.5], [6, 8, 10, 12]]
    edges = [[0, 0.75, 2.25, 3], [3, 4.125, 6.375, 7.5], [6, 7.5, 10.5, 12]]
    for align_corners, expected in ((True, aligned), (False, edges)):
        y = resize_bilinear(x, (3, 4), align_corners=align_corners)
        np.testing.assert_allclose(y[0, :, :, 0], expected, atol=1e-6)


def test_resize_between_true_sizes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 7, 2)).astype(np.float32)
    sources, targets = np.array([[6, 7], [3, 2], [1, 5]]), np.array([[9, 11], [10, 3], [4, 8]])
    y = resize_bilinear(x, (10, 11), align_corners=True, source_size=sources, target_size=targets)
    for i, ((h, w), (height, width)) in enumerate(zip(sources, targets, strict=True)):
        alone = resize_bilinear(x[i : i + 1, :h, :w], (int(height), int(width)), align_corners=True)[0]
        np.testing.assert_allclose(y[i, :height, :width], alone, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(y[i]).sum((0, 1)), np.asarray(y[i, :height, :width]).sum((0, 1)))


def test_zero_outside():
    x = zero_outside(jnp.ones((2, 3, 4, 1)), jnp.array([[2, 4], [3, 1]]))
    assert x[0].sum() == 8
    assert x[1, :, 0].sum() == 3
    assert x[1].sum() == 3


def test_batch_norm_normalizes_with_biased_and_accumulates_unbiased_variance():
    x = np.random.default_rng(0).normal(3, 2, size=(2, 3, 4, 5)).astype(np.float32)
    norm = BatchNorm(5)
    y = norm(jnp.asarray(x))
    np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_batch_norm_in_evaluation_uses_and_keeps_running_statistics():
    norm = BatchNorm(3)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 9.0, 16.0])
    y = nnx.view(norm, use_running_average=True)(jnp.ones((2, 3)))
    np.testing.assert_allclose(y, np.tile([0, -1 / 3, -0.5], (2, 1)), atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], [1, 2, 3])


def test_batch_norm_survives_a_large_mean():
    # E[x^2] - E[x]^2 is zero or negative here in float32.
    x = 1e4 + np.random.default_rng(0).normal(size=(4096, 1)).astype(np.float32)
    y = BatchNorm(1)(jnp.asarray(x))
    np.testing.assert_allclose(np.std(y), 1, atol=1e-2)


def test_batch_norm_computes_in_float32_below_and_in_float64_above():
    norm = BatchNorm(2)
    y = norm(jnp.linspace(0, 1, 8, dtype=jnp.bfloat16).reshape(4, 2))
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == jnp.float32
    with jax.enable_x64(True):
        assert BatchNorm(2)(jnp.arange(8.0, dtype=jnp.float64).reshape(4, 2)).dtype == jnp.float64


def test_batch_norm_refuses_a_single_value_a_channel():
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm(2)(jnp.ones((1, 1, 1, 2)))


@pytest.mark.parametrize("length", [6, 7])
def test_strided_convolution_pads_symmetrically(length):
    conv = ConvNorm(1, 1, 3, stride=2, relu=False, rngs=nnx.Rngs(0))
    conv.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 1].set(1.0)
    x = jnp.arange(1.0, length + 1)[None, :, None, None] * jnp.ones((1, length, length, 1))
    y = nnx.view(conv, use_running_average=True)(x)[0, :, 0, 0]
    # The kernel reads the row above: padding first, then odd indices.
    np.testing.assert_allclose(y, [0.0, 2.0, 4.0, 6.0][: (length + 1) // 2], atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_variants_are_the_features_times_each_mask(count: int, dtype: jnp.dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), dtype)
    masks = jnp.asarray(2.0 * rng.integers(0, 2, (count, 2, 5)), jnp.float32)
    joined = masked_variants(x, masks)
    assert joined.shape == (2 * count, 3, 4, 5)
    assert joined.dtype == dtype
    np.testing.assert_array_equal(joined[1], x[0] * masks[1, 0] if count > 1 else x[1] * masks[0, 1])
    np.testing.assert_array_equal(split_variants(joined, count), x * masks[:, :, None, None, :])


def test_variants_with_ones_and_dropout_are_the_clean_and_the_dropped_features():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    keep = np.random.default_rng(1).random((2, 5)) < 0.5
    clean, dropped = split_variants(masked_variants(x, jnp.stack([jnp.ones(keep.shape), 2.0 * keep])), 2)
    np.testing.assert_array_equal(clean, x)
    np.testing.assert_array_equal(dropped, np.where(keep[:, None, None, :], 2 * np.asarray(x), 0))
