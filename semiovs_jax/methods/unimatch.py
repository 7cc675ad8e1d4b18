"""UniMatch (arXiv 2208.09910, equations 4 to 8), and SemiOVS on it (arXiv 2507.03302, section 3.3).

The student labels the weak view of each unlabeled image. It learns from that label on two CutMix-ed strong views and
on the weak view with half of its feature channels dropped. OOD images are learned in the same way from OVS labels, and
the in-distribution images pasted into them from the student's.

Reference: `semiovs/semiovs_unimatch.py`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from semiovs_jax.methods.table import OVS, STUDENT, Method, Rule, Term

SHARES = {"s1": 0.25, "s2": 0.25, "fp": 0.5}  # half of a rule's weight on images, half on features
PARTNERS = {"unlabeled": "mix", "ood": "unlabeled"}
_KEEP_PROBABILITY = 0.5


def make(config: ml_collections.ConfigDict) -> Method:
    """The method of `config.method`.

    Args:
      config: keys confidence_threshold and ovs_threshold, ood, and ood_weight (lambda of the paper).
    """
    return with_terms("unimatch", config)


def with_terms(name: str, config: ml_collections.ConfigDict, extra: Sequence[Term] = ()) -> Method:
    """UniMatch with further terms: those of its own come first, those of OOD images last."""
    by_student = Rule(stream="unlabeled", labeler=STUDENT, threshold=config.confidence_threshold)
    by_ovs = Rule(
        stream="ood",
        labeler=OVS,
        pasted_labeler=STUDENT,
        weight=config.ood_weight,
        threshold=config.confidence_threshold,
    )
    ood = by_ovs.expand(SHARES, "_ood") if config.ood == "ovs" else ()
    return Method(
        name,
        (*by_student.expand(SHARES), *extra, *ood),
        partners=PARTNERS,
        weak_masks=clean_and_dropped,
        ovs_threshold=config.ovs_threshold,
    )


def clean_and_dropped(key: jax.Array, images: int, channels: Sequence[int]) -> tuple[jax.Array, ...]:
    """Masks of two variants: all channels, and half of them, doubled. See `table.ChannelMasks`."""

    def level(key: jax.Array, count: int) -> jax.Array:
        kept = jax.random.bernoulli(key, _KEEP_PROBABILITY, (images, count)).astype(jnp.float32)
        return jnp.stack([jnp.ones_like(kept), kept / _KEEP_PROBABILITY])

    return tuple(level(k, count) for k, count in zip(jax.random.split(key, len(channels)), channels, strict=True))
