"""Which parts of a state hold a NaN or an infinity."""

from typing import Any

import jax
import jax.numpy as jnp


def not_finite(state: Any) -> list[str]:
    """Names of the parts of a state that hold a NaN or an infinity; waits for the devices.

    Every process must call this.

    Args:
      state: a pytree of arrays.

    Returns:
      The first two keys of their paths, such as "params/backbone" or "labelers/ema", sorted.
    """
    parts: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = jax.tree_util.keystr(path[:2], simple=True, separator="/")
            parts.setdefault(name, []).append(_all_finite(leaf))
    return sorted(name for name, finite in jax.device_get(parts).items() if not all(finite))


@jax.jit  # of one array: a program over a whole state takes several times as long to compile
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
