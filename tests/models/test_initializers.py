import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semiovs_jax.models.initializers import variance_scaling

SHAPE = (3, 3, 64, 128)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(("mode", "scale"), [("fan_in", 1 / 3), ("fan_out", 2.0)])
def test_numbers_are_distributed_as_those_of_jax(mode, scale, distribution):
    own, of_jax = (
        np.asarray(make(scale, mode, distribution)(jax.random.key(0), SHAPE))
        for make in (variance_scaling, jax.nn.initializers.variance_scaling)
    )
    assert (own.dtype, own.shape) == (of_jax.dtype, of_jax.shape)
    quantiles = np.linspace(0.001, 0.999, 41)
    expected = np.quantile(of_jax, quantiles)
    np.testing.assert_allclose(np.quantile(own, quantiles), expected, atol=0.02 * of_jax.std(), rtol=0.03)
    assert abs(own).max() < 1.2 * abs(of_jax).max()


def test_a_key_gives_the_same_numbers_everywhere_and_another_key_gives_others():
    init = variance_scaling(2.0, "fan_out", "normal")
    key = jax.random.key(1)
    eager = init(key, SHAPE)
    np.testing.assert_array_equal(eager, init(jax.random.key_data(key), SHAPE))
    np.testing.assert_array_equal(eager, jax.jit(lambda key: init(key, SHAPE))(key))
    correlation = np.corrcoef(np.ravel(eager), np.ravel(init(jax.random.fold_in(key, 1), SHAPE)))[0, 1]
    assert abs(correlation) < 0.01


def test_the_dtype_is_kept_and_shapes_are_known_without_drawing():
    init = variance_scaling(1.0, "fan_in", "uniform")
    assert init(jax.random.key(0), (4, 5), jnp.bfloat16).dtype == jnp.bfloat16
    found = jax.eval_shape(lambda key: init(key, SHAPE), jax.random.key(0))
    assert (found.shape, found.dtype) == (SHAPE, jnp.float32)
