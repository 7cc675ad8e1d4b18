"""The forward passes of a step: the student's logits of all views, in the reference's order.

A student with batch statistics decodes all variants of all weak views, as in the reference: each moves the statistics.
Otherwise only what is read is decoded, and what only labels are made of has no backward pass. The gradient is the same.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from semiovs_jax.methods import STUDENT, Method
from semiovs_jax.models.functional import Functional
from semiovs_jax.runtime.sharding import deinterleave, interleave
from semiovs_jax.views import Views, mixed_views

_LABELED = "labeled"
_CLEAN, _PERTURBED = 0, 1  # variants of the weak views, see `Method.weak_masks`

_Logits = dict[str, jax.Array]  # by stream


class Predictions(NamedTuple):
    """Logits, float [N, H, W, K]: of the labeled weak view, and by stream of the others.

    Attributes:
      labeled: of the labeled weak view.
      labeled_fp: the same with perturbed features, which no term reads; None if it is not computed.
      frozen: eval-mode logits of weak views that are only labeled, without gradient.
      weak: train-mode logits of the weak views; if the student does not mix images, of those that it labels.
      fp: the same with perturbed features.
      s1: of the CutMix-ed first strong views.
      s2: of the second.
    """

    labeled: jax.Array
    labeled_fp: jax.Array | None = None
    frozen: Mapping[str, jax.Array] = {}
    weak: Mapping[str, jax.Array] = {}
    fp: Mapping[str, jax.Array] = {}
    s1: Mapping[str, jax.Array] = {}
    s2: Mapping[str, jax.Array] = {}


def predict(
    params: Any, batch_stats: Any, views: Views, student: Functional, method: Method
) -> tuple[Predictions, Any]:
    """All forward passes of a step, each moving the running statistics.

    First the weak views that the student only labels, in eval mode and without gradient; then, in train mode, the
    labeled and the predicted weak views jointly, with their variants; then each stream's strong views.

    Returns:
      The logits, and the running statistics afterwards.
    """
    fixed = jax.lax.stop_gradient(params)
    only_labeled = [name for name in method.labeled_by.get(STUDENT, ()) if name not in method.weak_streams]
    frozen = {name: student.apply(fixed, batch_stats, views.weak[name], train=False)[0] for name in only_labeled}

    of_weak = _of_all_variants if student.mixes_images or not views.weak_masks else _of_variants_that_are_read
    weak, fp, batch_stats = of_weak(params, batch_stats, views, student, method)

    s1, s2 = {}, {}
    for name in method.predicted_streams:
        mixed = interleave(*mixed_views(views, name, method))
        masks = views.strong_masks.get(name)
        strong, batch_stats = student.apply(params, batch_stats, mixed, train=True, channel_masks=masks)
        s1[name], s2[name] = deinterleave(strong[0] if masks else strong, 2)
    return Predictions(weak.pop(_LABELED), fp.pop(_LABELED, None), frozen, weak, fp, s1, s2), batch_stats


def _of_all_variants(
    params: Any, batch_stats: Any, views: Views, student: Functional, method: Method
) -> tuple[_Logits, _Logits, Any]:
    """The clean and the perturbed logits of all weak views, and the statistics."""
    names = (_LABELED, *method.weak_streams)
    joint = interleave(*(views.weak[name] for name in names))
    logits, batch_stats = student.apply(params, batch_stats, joint, train=True, channel_masks=views.weak_masks or None)
    variants = jnp.unstack(logits) if views.weak_masks else (logits,)
    clean, *perturbed = (_by_stream(variant, names) for variant in variants)
    return clean, perturbed[0] if perturbed else {}, batch_stats


def _of_variants_that_are_read(
    params: Any, batch_stats: Any, views: Views, student: Functional, method: Method
) -> tuple[_Logits, _Logits, Any]:
    """The clean logits of labeled images and of views that the student labels, the perturbed ones that terms read."""
    names = (_LABELED, *method.weak_streams)
    joint = interleave(*(views.weak[name] for name in names))
    levels, batch_stats = student.apply(params, batch_stats, joint, train=True, method="encode")

    def decode(params: Any, levels: tuple[jax.Array, ...], wanted: list[tuple[int, str]]) -> list[jax.Array]:
        """The logits of the wanted (variant, stream), in one pass."""
        chosen = []
        for level, masks in zip(levels, views.weak_masks, strict=True):
            images = _by_stream(level, names)
            variants = [_by_stream(mask[:, None, None, :], names) for mask in masks.astype(level.dtype)]
            chosen.append(interleave(*(images[name] * variants[index][name] for index, name in wanted)))
        shape = joint.shape[1:3]
        logits, _ = student.apply(params, batch_stats, tuple(chosen), shape=shape, train=True, method="decode")
        return list(deinterleave(logits, len(wanted)))

    perturbed = method.perturbed_streams
    labeled, *learned = decode(params, levels, [(_CLEAN, _LABELED), *((_PERTURBED, name) for name in perturbed)])
    clean = {_LABELED: labeled}
    if by_student := [name for name in method.weak_streams if name in method.labeled_by.get(STUDENT, ())]:
        fixed = jax.lax.stop_gradient((params, levels))
        clean |= zip(by_student, decode(*fixed, [(_CLEAN, name) for name in by_student]), strict=True)
    return clean, dict(zip(perturbed, learned, strict=True)), batch_stats


def _by_stream(joint: jax.Array, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Splits what is interleaved."""
    return dict(zip(names, deinterleave(joint, len(names)), strict=True))
