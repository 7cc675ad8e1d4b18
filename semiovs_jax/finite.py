"""Which parts of a state hold a NaN or an infinity."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def not_finite(state: Any) -> list[str]:
    """Names of the parts of a state that hold a NaN or an infinity; waits for the devices.

    Every process must call this.

    Args:
      state: a pytree of arrays.

    Returns:
      The first two keys of their paths, such as "params/backbone" or "labelers/ema".
    """
    return [name for name, finite in jax.device_get(_finite_by_part(state)).items() if not finite]


@jax.jit
def _finite_by_part(state: Any) -> dict[str, jax.Array]:
    parts: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = jax.tree_util.keystr(path[:2], simple=True, separator="/")
            parts.setdefault(name, []).append(jnp.isfinite(leaf).all())
    return {name: functools.reduce(jnp.logical_and, finite) for name, finite in parts.items()}
