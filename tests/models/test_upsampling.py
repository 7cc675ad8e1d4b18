"""2x2 upsampling fused with the convolution that follows it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from semiovs_jax.models.convolution import convolve
from semiovs_jax.models.upsampling import ConvTranspose2x2, CornerConv


def draw(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_a_corner_convolution_is_a_transposed_convolution_and_the_one_after_it():
    up = ConvTranspose2x2(4, 3, rngs=nnx.Rngs(0))
    up.bias[...] = draw(3, seed=1)
    kernel, x = draw(3, 3, 3, 5, seed=2), draw(2, 6, 7, 4, seed=3)

    def fused(kernel: jax.Array, x: jax.Array) -> jax.Array:
        corner = CornerConv.compose(up, kernel, (6, 7))
        return corner(x) + corner.bias

    def in_turn(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return convolve(up(x), kernel)

    result, backward = jax.vjp(fused, kernel, x)
    expected, expected_backward = jax.vjp(in_turn, kernel, x)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    gradient = draw(*expected.shape, seed=4)
    for found, wanted in zip(backward(gradient), expected_backward(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


def test_the_gradient_of_a_corner_convolution_is_fast_on_the_cpu():
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.square(CornerConv(kernel, jnp.zeros(()))(x)).sum()

    compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1))).lower(draw(2, 2, 4, 8, seed=0), draw(2, 6, 7, 4, seed=1)).compile()
    )
    program = compiled.as_text()
    assert program is not None
    assert "convolution(" in program
    assert "rhs_reversal" not in program  # of swapped operands
