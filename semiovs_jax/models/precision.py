"""Dtypes and precisions in which models compute."""

import jax
import jax.numpy as jnp

# None: the dtype of the input, so that float64 inputs stay float64.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}

# Of products of float32 arrays, as `jax.lax.Precision`. "highest" is float32 on every device. "high" is TF32 on GPU and
# three passes in bfloat16 on TPU. "default" is TF32 on GPU and one such pass on TPU. On the CPU, all are float32.
PRECISIONS = ("highest", "high", "default")


def full_precision(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats to float32; leaves float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
