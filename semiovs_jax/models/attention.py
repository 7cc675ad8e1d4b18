"""Softmax attention whose backward pass computes the weights again instead of keeping them.

The weights of all heads, [N, heads, T, T], are the largest arrays of a vision transformer. On the CPU they do not fit
into caches, so there one head is computed after the other.
"""

import functools

import jax
import jax.numpy as jnp

from semiovs_jax.models.on_cpu import on_cpu


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
    # Of the caller's `jax.default_matmul_precision`, which has ended when the gradient of `on_cpu` is traced.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    heads_first = [jnp.moveaxis(x, 2, 0) for x in (query, key, value)]
    if mask is None:
        forms = (functools.partial(form, precision=precision) for form in (_attend_in_turn, _attend))
        result = on_cpu(*forms)(*heads_first)
    else:
        result = _attend_where(mask, *heads_first)
    return jnp.moveaxis(result, 0, 2)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, *, precision: str | None) -> jax.Array:
    """Maps [..., T, c], [..., S, c], [..., S, d] to [..., T, d]."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    products = functools.partial(jnp.einsum, precision=precision, preferred_element_type=wide)
    # jax.nn.dot_product_attention casts its logits to float32, also in a float64 run.
    logits = products("...tc,...sc->...ts", query * query.shape[-1] ** -0.5, key)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    # The softmax divides by the sum; divided here, the result has fewer elements than the weights.
    result = products("...ts,...sd->...td", weights.astype(value.dtype), value) / weights.sum(-1, keepdims=True)
    return result.astype(value.dtype)


def _attend_in_turn(query: jax.Array, key: jax.Array, value: jax.Array, *, precision: str | None) -> jax.Array:
    """`_attend` along the first axis."""
    one = jax.checkpoint(functools.partial(_attend, precision=precision))
    return jax.lax.map(lambda arrays: one(*arrays), (query, key, value))


def _attend_where(mask: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`_attend` where the mask is True. Texts are short, and embedded once: the plain form will do."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...tc,...sc->...ts", query, key, preferred_element_type=wide)
    logits = jnp.where(mask, logits * query.shape[-1] ** -0.5, -jnp.inf)
    return jnp.einsum("...ts,...sd->...td", jax.nn.softmax(logits).astype(value.dtype), value)
