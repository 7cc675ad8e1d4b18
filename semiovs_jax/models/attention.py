"""Softmax attention. Without a mask, its backward pass computes the weights again instead of keeping them.

The weights of all heads, [N, heads, T, S], are the largest arrays of a vision transformer. On the CPU they do not fit
into caches, so there one head is computed after the other.
"""

import functools

import jax
import jax.numpy as jnp

from semiovs_jax.models.on_cpu import on_cpu
from semiovs_jax.models.precision import matmul_precision


@jax.jit  # traced once for layers of equal shapes
def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Scaled dot-product attention; the softmax is float32 or wider.

    Args:
      query: float [N, T, heads, c].
      key: float [N, S, heads, c].
      value: float [N, S, heads, d].
      mask: bool [T, S], True where a query attends to a key. None: everywhere.

    Returns:
      [N, T, heads, d], in the dtype of `value`.
    """
    query, key, value = (jnp.moveaxis(x, 2, 0) for x in (query, key, value))
    plain = functools.partial(_attend, precision=matmul_precision())
    if mask is None:
        in_turn = functools.partial(_attend_in_turn, precision=matmul_precision())
        result = on_cpu(in_turn, plain)(query, key, value)
    else:
        result = plain(query, key, value, mask=mask)
    return jnp.moveaxis(result, 0, 2)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, *, precision: str | None, mask: jax.Array | None = None
) -> jax.Array:
    """Maps [..., T, c], [..., S, c], [..., S, d] to [..., T, d]."""
    logits = _products("...tc,...sc->...ts", query, key, precision) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("...ts,...sd->...td", weights, value, precision=precision)


def _attend_in_turn(query: jax.Array, key: jax.Array, value: jax.Array, *, precision: str | None) -> jax.Array:
    """`_attend` along the first axis."""
    return jax.lax.map(lambda arrays: _attend_head(*arrays, precision), (query, key, value))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_head(query: jax.Array, key: jax.Array, value: jax.Array, precision: str | None) -> jax.Array:
    """`_attend` with fewer passes over the weights: what is divided by their sums is the result."""
    logits = _products("...tc,...sc->...ts", query * query.shape[-1] ** -0.5, key, precision)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    result = _products("...ts,...sd->...td", weights.astype(value.dtype), value, precision)
    return (result / weights.sum(-1, keepdims=True)).astype(value.dtype)


def _backward(precision: str | None, arrays: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(functools.partial(_attend, precision=precision), *arrays)[1](gradient)


_attend_head.defvjp(lambda *arguments: (_attend_head(*arguments), arguments[:3]), _backward)


def _products(axes: str, a: jax.Array, b: jax.Array, precision: str | None) -> jax.Array:
    """An einsum in float32 or wider. `jax.nn.dot_product_attention` has float32 logits, also in a float64 run."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(axes, a, b, precision=precision, preferred_element_type=wide)
