"""The student as its own labeler: it labels by the very predictions that the loss uses.

It is no `Labeler`, since its logits come out of the forward passes that are differentiated.
"""

import jax
import jax.numpy as jnp

from semiovs_jax.ovs.base import PseudoLabel


def from_logits(logits: jax.Array, valid: jax.Array) -> PseudoLabel:
    """Softmax, then the most probable class; carries no gradient.

    Args:
      logits: float [N, H, W, K].
      valid: bool [N, H, W].
    """
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits), axis=-1)
    label = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    return PseudoLabel(label, jnp.max(probabilities, axis=-1), valid)
