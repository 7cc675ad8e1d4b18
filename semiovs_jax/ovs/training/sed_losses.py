"""SED's training losses, first of all a binary cross-entropy per class on each of its heads.

Source: xb534/SED at 250b495f, `sed/sed_model.py`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from semiovs_jax.losses import cross_entropy, masked_mean
from semiovs_jax.models.layers import resize_bilinear
from semiovs_jax.models.sed.aggregator import SedLogits, unit

_CONTRASTIVE_SCALE = 20.0  # of the cosines before their softmax


def binary_cross_entropy(
    logits: jax.Array, label: jax.Array, *, ignore_index: int, ignore_as_negative: bool = False
) -> jax.Array:
    """Mean over pixels and classes of the cross-entropy of "this pixel is of this class".

    Args:
      logits: float [N, K, H, W].
      label: int [N, H, W], 0..K-1 or `ignore_index`.
      ignore_index: the label of pixels that are left out.
      ignore_as_negative: count them, as pixels of no class (the reference).

    Returns:
      float scalar; 0 if no pixel counts.
    """
    is_class = label[:, None] == jnp.arange(logits.shape[1])[:, None, None]
    loss = jax.nn.softplus(logits) - jnp.where(is_class, logits, 0)
    if ignore_as_negative:
        return loss.mean()
    return masked_mean(loss, jnp.broadcast_to(label[:, None] != ignore_index, loss.shape))


def best_concept(logits: jax.Array, class_of_concept: Sequence[int]) -> jax.Array:
    """Logits of concepts [N, T, h, w] to those of classes [N, K, h, w]: the best of each class's.

    Args:
      logits: float [N, T, h, w].
      class_of_concept: the class of each concept, ascending, every class at least once.
    """
    num_classes = class_of_concept[-1] + 1
    if num_classes == len(class_of_concept):
        return logits
    by_concept = jnp.moveaxis(logits, 1, 0)
    classes = jnp.asarray(class_of_concept)
    best = jax.ops.segment_max(by_concept, classes, num_segments=num_classes, indices_are_sorted=True)
    return jnp.moveaxis(best, 0, 1)


def sed_losses(
    logits: SedLogits,
    label: jax.Array,
    class_of_concept: Sequence[int],
    *,
    ignore_index: int,
    ignore_as_negative: bool = False,
) -> dict[str, jax.Array]:
    """One loss per head, each head resized to the label; the reference minimizes their plain sum.

    Args:
      logits: of T concepts.
      label: int [N, H, W], class indices or `ignore_index`.
      class_of_concept: the class of each concept, ascending.
      ignore_index: as in `binary_cross_entropy`.
      ignore_as_negative: as in `binary_cross_entropy`.

    Returns:
      "mask" and "auxiliary_0" (the coarsest), "auxiliary_1", "auxiliary_2".
    """

    def loss(found: jax.Array) -> jax.Array:
        found = best_concept(found, class_of_concept)
        n, k = found.shape[:2]
        planes = found.reshape(n * k, *found.shape[2:], 1)
        planes = resize_bilinear(planes, (label.shape[1], label.shape[2]), align_corners=False)
        resized = planes.reshape(n, k, *label.shape[1:])
        return binary_cross_entropy(resized, label, ignore_index=ignore_index, ignore_as_negative=ignore_as_negative)

    heads = {"mask": logits.mask} | {f"auxiliary_{i}": found for i, found in enumerate(logits.auxiliary)}
    return {name: loss(found) for name, found in heads.items()}


def contrastive_loss(dense: jax.Array, text: jax.Array, label: jax.Array, class_of_concept: Sequence[int]) -> jax.Array:
    """Cross-entropy over classes of the image tower's own embeddings, before any aggregation.

    Not in the reference: it gives a tower that starts from random weights the words' meaning sooner. Every class
    in the batch counts alike, however few its pixels: else the ground would drown the objects.

    Args:
      dense: float [N, h, w, D], embeddings of pixels.
      text: float [T, P, D], unit embeddings; their mean over templates counts.
      label: int [N, H, W], class indices; other values are left out.
      class_of_concept: the class of each concept, ascending.
    """
    cosine = jnp.einsum("nhwd,td->nthw", unit(dense), unit(text.mean(1)))
    planes = jnp.moveaxis(best_concept(cosine, class_of_concept), 1, -1)
    logits = _CONTRASTIVE_SCALE * resize_bilinear(planes, (label.shape[1], label.shape[2]), align_corners=False)
    is_class = label[..., None] == jnp.arange(logits.shape[-1])
    pixels = is_class.sum((0, 1, 2))
    total = jnp.where(is_class, cross_entropy(logits, label)[..., None], 0).sum((0, 1, 2))
    return jnp.sum(total / jnp.maximum(pixels, 1)) / jnp.maximum(jnp.count_nonzero(pixels), 1)
