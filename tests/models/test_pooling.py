"""Max pooling: the form for the CPU is that of other platforms, down to which of equal values gets the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semiovs_jax.models import pooling
from semiovs_jax.models.pooling import max_pool


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(9, 9), (8, 10), (1, 2), (81, 5)])
def test_the_form_for_the_cpu_equals_that_of_other_platforms(shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, (2, *shape, 3)), dtype)  # with equal maxima
    result, backward = jax.vjp(jax.jit(max_pool), x)
    expected, expected_backward = jax.vjp(pooling._pool, x)
    np.testing.assert_array_equal(result, expected)
    gradient = jnp.asarray(rng.integers(1, 9, expected.shape), dtype)  # sums of these are exact
    np.testing.assert_array_equal(backward(gradient)[0], expected_backward(gradient)[0])


def test_the_gradient_needs_no_scatter():
    x = jnp.zeros((1, 9, 9, 2))
    gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum()))
    assert "scatter" not in gradient.lower(x).as_text()
    assert "scatter" in gradient.trace(x).lower(lowering_platforms=("tpu",)).as_text()
