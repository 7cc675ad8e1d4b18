"""Normalization and ReLU: their gradients are those of automatic differentiation, and keep less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from semiovs_jax.models.normalization import GroupNorm, normalize_batch, normalize_groups, relu

EPSILON = 1e-5


def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    mean = x.mean((0, 1, 2))
    variance = jnp.square(x - mean).mean((0, 1, 2))
    return jax.nn.relu((x - mean) / jnp.sqrt(variance + EPSILON) * scale + bias)


def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return relu(normalize_batch(x, scale, bias, EPSILON)[0])


@pytest.fixture
def arguments() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for shape in ((3, 5, 4, 6), (6,), (6,)))


def test_the_gradient_is_that_of_automatic_differentiation(arguments):
    expected, expected_backward = jax.vjp(plain, *arguments)
    result, backward = jax.vjp(ours, *arguments)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)
    for found, wanted in zip(backward(gradient), expected_backward(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_backward_pass_keeps_the_input_and_the_result_in_their_dtype(arguments):
    x, scale, bias = arguments
    _, backward = jax.vjp(ours, x.astype(jnp.bfloat16), scale, bias)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16] * 2


def test_statistics_are_float32_and_have_no_gradient(arguments):
    x, scale, bias = arguments
    _, mean, variance = normalize_batch(x.astype(jnp.bfloat16), scale, bias, EPSILON)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(variance, np.asarray(x.astype(jnp.bfloat16), np.float32).var((0, 1, 2)), rtol=1e-5)
    gradient = jax.grad(lambda x: normalize_batch(x, scale, bias, EPSILON)[1].sum())(x)
    assert not gradient.any()


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 6)])
def test_groups_of_an_image_are_normalized_alone(shape: tuple[int, ...]):
    """Against flax's layer: the result, and the gradient by automatic differentiation."""
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(1, 2, 6), jnp.float32) for _ in range(2))
    plain = nnx.GroupNorm(6, num_groups=3, epsilon=EPSILON, use_fast_variance=False, rngs=nnx.Rngs(0))
    graphdef = nnx.graphdef(plain)
    apply = lambda x, scale, bias: nnx.merge(graphdef, {"scale": scale, "bias": bias})(x)  # noqa: E731
    expected, expected_backward = jax.vjp(apply, x, scale, bias)
    result, backward = jax.vjp(lambda *arrays: normalize_groups(*arrays, 3, EPSILON), x, scale, bias)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(backward(gradient), expected_backward(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_group_norm_has_a_group_per_16_channels_and_the_dtype_that_is_asked_for():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 3, 48)), jnp.float32)
    layer = GroupNorm(48, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    result = layer(x)
    assert result.dtype == jnp.bfloat16
    groups = np.asarray(result, np.float32).reshape(2, 9, 3, 16)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-2)
    np.testing.assert_allclose(groups.std((1, 3)), 1, atol=1e-2)
    assert GroupNorm(8, rngs=nnx.Rngs(0)).groups == 1
    kept = jax.tree.leaves(jax.vjp(layer, x.astype(jnp.bfloat16))[1])
    assert [leaf.dtype for leaf in kept if leaf.shape == x.shape] == [jnp.bfloat16]
