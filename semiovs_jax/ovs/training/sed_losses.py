"""SED's training losses: a binary cross-entropy per class on each head, and an optional contrastive loss.

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
    """Mean over pixels and classes of the binary cross-entropy of "this pixel belongs to this class".

    Args:
      logits: float [N, K, H, W].
      label: int [N, H, W], 0..K-1 or `ignore_index`.
      ignore_index: the label of pixels to leave out.
      ignore_as_negative: include those pixels, as negatives of every class (the reference does).

    Returns:
      float scalar; 0 if all pixels are left out.
    """
    is_class = label[:, None] == jnp.arange(logits.shape[1])[:, None, None]
    loss = jax.nn.softplus(logits) - jnp.where(is_class, logits, 0)
    if ignore_as_negative:
        return loss.mean()
    return masked_mean(loss, jnp.broadcast_to(label[:, None] != ignore_index, loss.shape))


def best_concept(logits: jax.Array, class_of_concept: Sequence[int]) -> jax.Array:
    """Logits of classes, float [N, K, h, w]: the maximum over the concepts of each class.

    Args:
      logits: of concepts, float [N, T, h, w].
      class_of_concept: the class of each concept, ascending. Every class occurs.
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
    """One loss per head, on logits resized to the label. The reference minimizes the plain sum.

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
    """Cross-entropy over classes, on the cosines of the image tower's embeddings and the text embeddings.

    Not in the reference. It helps a tower with random initial weights to align with the text embeddings early. Every
    class in the batch has the same weight, whatever its number of pixels, so that background does not dominate.

    Args:
      dense: float [N, h, w, D], embeddings of pixels.
      text: float [T, P, D], unit embeddings, which are averaged over templates.
      label: int [N, H, W], class indices. Pixels with other values are left out.
      class_of_concept: the class of each concept, ascending.
    """
    cosine = jnp.einsum("nhwd,td->nthw", unit(dense), unit(text.mean(1)))
    planes = jnp.moveaxis(best_concept(cosine, class_of_concept), 1, -1)
    logits = _CONTRASTIVE_SCALE * resize_bilinear(planes, (label.shape[1], label.shape[2]), align_corners=False)
    is_class = label[..., None] == jnp.arange(logits.shape[-1])
    pixels = is_class.sum((0, 1, 2))
    total = jnp.where(is_class, cross_entropy(logits, label)[..., None], 0).sum((0, 1, 2))
    return jnp.sum(total / jnp.maximum(pixels, 1)) / jnp.maximum(jnp.count_nonzero(pixels), 1)
