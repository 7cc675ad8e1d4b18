"""Per-pixel losses, and the masked means that reduce them to scalars.

Under jit, a mean's denominator is that of the global batch. A mean over no pixels is 0 with a zero gradient, so a batch
without a valid pixel does not change the parameters; the reference divides 0 by 0.
"""

from typing import Literal

import jax
import jax.numpy as jnp

GateMode = Literal["pixelwise", "pixelratio", "pixelavg"]
Pixels = Literal["valid", "all"]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy of each pixel, in float32 or the logits' wider type.

    Args:
      logits: float [..., K].
      label: int [...], 0..K-1. Pixels with another value (ignore) get logsumexp(logits): mask them out.

    Returns:
      float [...].
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A comparison fuses with the sum; a gather and the scatter of its gradient do not.
    chosen = label[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0).sum(-1)


def masked_mean(value: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of `value` over the valid pixels; 0 if there are none.

    Args:
      value: float [...].
      valid: bool [...].

    Returns:
      float scalar.
    """
    return jnp.where(valid, value, 0).sum() / _count(valid, value.dtype)


def gated_mean(
    loss: jax.Array,
    confidence: jax.Array,
    valid: jax.Array,
    threshold: float | jax.Array,
    mode: GateMode = "pixelwise",
    *,
    mean_over: Pixels = "valid",
) -> jax.Array:
    """Mean loss of pseudo-labeled pixels, weighted by the labels' confidence.

    The denominator counts every valid pixel, confident or not (reference: `confidence_weighted_loss`). The modes:

      pixelwise   sum(loss * [confidence >= threshold] * valid) / sum(valid)
      pixelratio  one weight per image in place of the comparison: the share of its valid pixels that pass it
      pixelavg    one weight per image: its mean confidence over valid pixels, without a threshold

    In the reference's image-wise modes, invalid pixels have loss, too, and pixelavg multiplies each image's weight with
    the loss of the whole batch; neither is reproduced.

    Args:
      loss: float [N, H, W].
      confidence: float [N, H, W], 0..1.
      valid: bool [N, H, W], False on padding and ignore.
      threshold: least confidence of a pixel with loss.
      mode: one of the above.
      mean_over: the pixels in the denominator; "all" includes invalid ones (SemiVL's `mean_all`).

    Returns:
      float scalar; 0 if no pixel is valid.

    Raises:
      ValueError: an unknown `mode`.
    """
    total = _count(valid, loss.dtype) if mean_over == "valid" else loss.size
    if mode == "pixelwise":
        return jnp.where(valid & (confidence >= threshold), loss, 0).sum() / total
    if mode == "pixelratio":
        weight = _mean_per_image(confidence >= threshold, valid, loss.dtype)
    elif mode == "pixelavg":
        weight = _mean_per_image(confidence, valid, loss.dtype)
    else:
        raise ValueError(f"mode={mode!r}: expected pixelwise, pixelratio or pixelavg")
    return (jnp.where(valid, loss, 0).sum((1, 2)) * weight).sum() / total


def _count(valid: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.maximum(jnp.count_nonzero(valid), 1).astype(dtype)


def _mean_per_image(value: jax.Array, valid: jax.Array, dtype: jnp.dtype) -> jax.Array:
    count = jnp.maximum(jnp.count_nonzero(valid, axis=(1, 2)), 1).astype(dtype)
    return jnp.where(valid, value, 0).astype(dtype).sum((1, 2)) / count
