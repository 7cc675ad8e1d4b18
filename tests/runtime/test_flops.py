from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from semiovs_jax.runtime.flops import count_flops

IMAGES, KERNEL, VECTORS = jnp.ones((2, 17, 19, 8)), jnp.ones((3, 3, 8, 16)), jnp.ones((5, 4))


def convolution(stride: int, dilation: int, padding: str | tuple, groups: int = 1) -> Callable[..., jax.Array]:
    def function(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return function


@pytest.mark.parametrize(
    ("function", "kernel"),
    [
        (convolution(1, 1, "SAME"), KERNEL),
        (convolution(2, 1, "SAME"), KERNEL),
        (convolution(2, 2, ((2, 2), (1, 0))), KERNEL),
        (convolution(1, 6, "SAME"), KERNEL),
        (convolution(1, 1, "SAME", groups=8), jnp.ones((7, 7, 1, 8))),
    ],
)
def test_convolutions_and_their_gradients_count_as_xla_counts_them(
    function: Callable[..., jax.Array], kernel: jax.Array
):
    def gradients(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        result, backward = jax.vjp(function, images, kernel)
        return backward(jnp.ones_like(result))

    for counted in (function, gradients):
        expected = jax.jit(counted).lower(IMAGES, kernel).cost_analysis()["flops"]
        assert count_flops(counted, IMAGES, kernel) == expected


def test_products_count_their_contracted_axes():
    count = count_flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5)))
    assert count == 2 * 2 * 3 * 4 * 5


def test_loops_forms_by_platform_and_what_is_not_needed():
    once = 2 * 5 * 4 * 4
    square = jnp.ones((4, 4))

    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ square, None), x, length=3)[0]

    def by_platform(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, cpu=lambda x: x, default=lambda x: x @ square)

    assert count_flops(loop, VECTORS) == 3 * once
    assert count_flops(by_platform, VECTORS) == once
    assert count_flops(jax.checkpoint(lambda x: jnp.sin(x @ square)), VECTORS) == once
    assert count_flops(lambda x: (x @ square, x)[1], VECTORS) == 0
    branches = (lambda x: x @ square @ square), (lambda x: x)
    assert count_flops(lambda x: jax.lax.cond(x.sum() > 0, *branches, x), VECTORS) == 2 * once
