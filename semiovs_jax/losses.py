"""Per-pixel losses and the masked means that make scalars of them.

Means run over the whole array they are given, so under jit their denominators are those of the global batch. A mean
over nothing is 0, with a zero gradient: a batch without a valid pixel leaves the parameters alone, where the
reference divides 0 by 0.
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
    # A comparison fuses with the sum; a gather, and the scatter of its gradient, do not.
    chosen = label[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0).sum(-1)


def masked_mean(value: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of `value` over the pixels where `valid`; 0 if there are none.

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
    as_published: bool = False,
) -> jax.Array:
    """Mean loss of pseudo-labeled pixels, gated by the labels' confidence.

    The denominator counts every valid pixel, confident or not (reference: `confidence_weighted_loss`):

      pixelwise   sum(loss * [confidence >= threshold] * valid) / sum(valid)
      pixelratio  the gate is instead one weight an image: the share of its valid pixels that pass
      pixelavg    the weight is the image's mean confidence over valid pixels, without a threshold

    Args:
      loss: float [N, H, W].
      confidence: float [N, H, W], 0..1.
      valid: bool [N, H, W], False on padding and ignore.
      threshold: least confidence that counts.
      mode: one of the above.
      mean_over: "all" counts invalid pixels in the denominator, too (SemiVL's `mean_all`).
      as_published: reproduce two slips of the reference in the image-wise modes: loss on invalid pixels counts too,
        and pixelavg multiplies each image's weight with the loss of the whole batch.

    Returns:
      float scalar; 0 if no pixel is valid.

    Raises:
      ValueError: if `mode` is none of the above.
    """
    total = _count(valid, loss.dtype) if mean_over == "valid" else loss.size
    if mode == "pixelwise":
        return jnp.where(valid & (confidence >= threshold), loss, 0).sum() / total
    if mode == "pixelratio":
        weight = _mean_per_image(confidence >= threshold, valid, loss.dtype)
    elif mode == "pixelavg":
        weight = _mean_per_image(confidence, valid, loss.dtype)
    else:
        raise ValueError(f"mode {mode!r} is none of pixelwise, pixelratio, pixelavg")
    counted = loss if as_published else jnp.where(valid, loss, 0)
    per_image = counted.sum((1, 2))
    if as_published and mode == "pixelavg":
        per_image = per_image.sum()
    return (per_image * weight).sum() / total


def ohem_kept(logits: jax.Array, label: jax.Array, valid: jax.Array, *, threshold: float, min_kept: int) -> jax.Array:
    """Chooses the hard pixels of a batch: those whose own class is not yet probable.

    Kept are the valid pixels whose probability of the true class is at most `threshold`, or at most that of the
    `min_kept`-th hardest, whichever keeps more; all of them if fewer than `min_kept` are valid (reference:
    `ProbOhemCrossEntropy2d`, except that there `min_kept` = 0 keeps everything).

    Args:
      logits: float [N, H, W, K].
      label: int [N, H, W].
      valid: bool [N, H, W].
      threshold: probability up to which a pixel is hard.
      min_kept: least number of pixels to keep in the batch.

    Returns:
      bool [N, H, W].
    """
    probability = jax.lax.stop_gradient(jnp.exp(-cross_entropy(logits, label)))
    probability = jnp.where(valid, probability, 1)
    if min_kept > 0:
        hardest_first = jnp.sort(probability, axis=None)
        least = hardest_first[min(min_kept, probability.size) - 1]
        return valid & (probability <= jnp.maximum(least, threshold))
    return valid & (probability <= threshold)


def ohem_cross_entropy(
    logits: jax.Array, label: jax.Array, valid: jax.Array, *, threshold: float, min_kept: int
) -> jax.Array:
    """Mean cross-entropy over the hard pixels; arguments as in `ohem_kept`."""
    kept = ohem_kept(logits, label, valid, threshold=threshold, min_kept=min_kept)
    return masked_mean(cross_entropy(logits, label), kept)


def _count(valid: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.maximum(jnp.count_nonzero(valid), 1).astype(dtype)


def _mean_per_image(value: jax.Array, valid: jax.Array, dtype: jnp.dtype) -> jax.Array:
    count = jnp.maximum(jnp.count_nonzero(valid, axis=(1, 2)), 1).astype(dtype)
    return jnp.where(valid, value, 0).astype(dtype).sum((1, 2)) / count
