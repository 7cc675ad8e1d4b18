import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from semiovs_jax.models.transformer import exact_gelu

X = np.linspace(-12, 12, 10_001)


def test_gelu_is_that_of_the_error_function():
    np.testing.assert_allclose(exact_gelu(jnp.asarray(X, jnp.float32)), X / 2 * (1 + erf(X / np.sqrt(2))), atol=2e-6)


def test_the_gradient_of_gelu():
    expected = (1 + erf(X / np.sqrt(2))) / 2 + X * np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi)
    found = jax.vmap(jax.grad(exact_gelu))(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_gelu_of_16_bits_is_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(exact_gelu)(x), exact_gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_gelu_is_few_operations(platform):
    program = jax.jit(exact_gelu).trace(jnp.ones(4)).lower(lowering_platforms=(platform,)).as_text()
    assert "chlo.erf " in program
    assert "erfc" not in program
