"""Attention: its forms, its backward pass, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semiovs_jax.models import attention
from semiovs_jax.models.attention import attend

# Several images, heads, and more keys than queries.
SHAPES = ((2, 7, 3, 4), (2, 9, 3, 4), (2, 9, 3, 5))


def draw(shapes: tuple[tuple[int, ...], ...], dtype: jnp.dtype = jnp.float32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(3 * rng.normal(size=shape), dtype) for shape in shapes]


def reference(query, key, value, mask=None):
    """The definition, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("nthc,nshc->nhts", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits) if mask is None else np.where(mask, np.exp(logits), 0)
    return np.einsum("nhts,nshd->nthd", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_softmax_of_scaled_products(dtype, masked):
    arrays = draw(SHAPES, dtype)
    mask = np.tril(np.ones((7, 9), bool)) if masked else None
    result = jax.jit(attend)(*arrays, None if mask is None else jnp.asarray(mask))
    assert result.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    np.testing.assert_allclose(np.asarray(result, np.float64), reference(*arrays, mask), rtol=tolerance, atol=tolerance)


def test_the_form_for_the_cpu_equals_that_of_other_platforms():
    arrays = draw(SHAPES)
    heads_first = [jnp.moveaxis(x, 2, 0) for x in arrays]
    result, backward = jax.vjp(jax.jit(attend), *arrays)
    expected, expected_backward = jax.vjp(functools.partial(attention._attend, precision="highest"), *heads_first)
    np.testing.assert_allclose(jnp.moveaxis(result, 2, 0), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = draw((result.shape,))
    for found, wanted in zip(backward(gradient), expected_backward(jnp.moveaxis(gradient, 2, 0)), strict=True):
        np.testing.assert_allclose(jnp.moveaxis(found, 2, 0), wanted, rtol=1e-5, atol=1e-5)
    lowered = {
        platform: jax.jit(attend).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert "stablehlo.while" in lowered["cpu"]
    assert all("stablehlo.while" not in lowered[platform] for platform in ("tpu", "cuda"))


def test_the_backward_pass_keeps_no_weights():
    _, backward = jax.vjp(attend, *draw(SHAPES))
    kept = [leaf.shape for leaf in jax.tree.leaves(backward) if hasattr(leaf, "shape")]
    assert kept
    assert all(shape[-2:] != (7, 9) for shape in kept)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_logits_do_not_overflow(dtype):
    query, key, value = draw(SHAPES, dtype)
    result = attend(100 * query, 100 * key, value)
    assert bool(jnp.isfinite(result.astype(jnp.float32)).all())
