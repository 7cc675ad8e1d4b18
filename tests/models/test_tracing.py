"""What a network repeats with equal shapes is traced once: a ResNet-101 has hundreds of equal layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from semiovs_jax.models.attention import attend
from semiovs_jax.models.convnext import depthwise_conv
from semiovs_jax.models.convolution import convolve
from semiovs_jax.models.normalization import normalize_batch, relu

X, SCALE = jnp.ones((1, 6, 6, 4)), jnp.ones(4)
PARTS = {
    "convolution": lambda x: convolve(x, jnp.ones((3, 3, 4, 4)), dilation=2),
    "depthwise convolution": lambda x: depthwise_conv(x, jnp.ones((3, 3, 1, 4))),
    "normalization": lambda x: normalize_batch(x, SCALE, SCALE, 1e-5)[0],
    "ReLU": relu,
    "attention": lambda x: attend(x, x, x),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_equal_layers_share_a_program(part: Callable[[jax.Array], jax.Array]):
    traced = jax.make_jaxpr(lambda x: part(part(x)))(X)
    first, second = (eqn.params["jaxpr"] for eqn in traced.eqns if eqn.primitive.name in ("jit", "pjit"))
    assert first is second
    lowered = jax.jit(lambda x: part(part(x))).lower(X).as_text()
    assert lowered.count("func.func private") < 2 * jax.jit(part).lower(X).as_text().count("func.func private")


@pytest.mark.parametrize("name", ["convolution", "attention"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.grad], ids=["forward", "backward"])
def test_products_have_the_precision_that_holds_where_they_are_called(name: str, transform: Callable):
    for precision in ("HIGHEST", "DEFAULT", "HIGHEST"):  # of two programs, neither has the other's

        def loss(x: jax.Array, precision: str = precision) -> jax.Array:
            with jax.default_matmul_precision(precision.lower()):
                return PARTS[name](x).sum()

        program = jax.jit(transform(loss)).trace(X).lower(lowering_platforms=("tpu",)).as_text()
        assert precision in program
        assert ({"HIGHEST", "DEFAULT"} - {precision}).pop() not in program
