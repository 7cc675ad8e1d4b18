import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax.methods.prevmatch import triangle
from semiovs_jax.methods.table import Progress
from semiovs_jax.optim import poly_learning_rate


def test_first_two_updates_use_the_base_rate():
    rate = jax.jit(poly_learning_rate(0.001, 10))
    rates = np.array([rate(jnp.int32(step)) for step in range(12)])
    assert rates[0] == rates[1] == np.float32(0.001)
    assert (np.diff(rates[1:]) < 0).all()
    np.testing.assert_allclose(rates[2], 0.001 * 0.9**0.9, rtol=1e-6)
    assert rates[11] == 0


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        rate = poly_learning_rate(3e-5, 10)(jnp.int32(3))
        assert float(rate) == pytest.approx(2.4541564381525754e-05, rel=1e-14)


def _mu(epoch, total):
    return triangle(Progress(3 * epoch + 2, steps_per_epoch=3, total_steps=3 * total))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.data())
def test_triangle(total, data):
    epoch = data.draw(st.integers(0, total))
    weight = float(_mu(epoch, total))
    assert 0 <= weight <= 1
    assert float(_mu(total // 2, total)) == 1
    assert float(_mu(total, total)) == 0
    if total > 1:
        assert float(_mu(0, total)) == 0
