"""Dtypes and precisions in which models compute."""

import jax
import jax.numpy as jnp

# None: the dtype of the input, so that float64 inputs stay float64.
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}

# Of products of float32 arrays, as `jax.lax.Precision`. "highest" is float32 on every device. "high" is TF32 on GPU and
# three passes in bfloat16 on TPU. "default" is TF32 on GPU and one such pass on TPU. On the CPU, all are float32.
PRECISIONS = ("highest", "high", "default")


def matmul_precision() -> str | None:
    """The precision that `jax.default_matmul_precision` asks for here; None if it does not.

    For products with a backward pass of their own: it is traced when the caller's context has ended.
    """
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def full_precision(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats to float32; leaves float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
