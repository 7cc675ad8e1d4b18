"""The exponential moving average of the student as a teacher.

Source: UniMatch V2 (arXiv 2410.10777); reference: `unimatch_v2.py` of LiheYoung/UniMatch-V2, which averages running
statistics, too.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from semiovs_jax.labelers.base import Facts, Labeler, View
from semiovs_jax.labelers.student import from_logits
from semiovs_jax.models.functional import Functional
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.runtime.sharding import deinterleave, interleave

SECTION = "method.ema"


def build(config: Any, facts: Facts) -> Labeler:
    """The teacher of `config.method.ema`, with the key decay."""
    return Ema(facts.student, config.decay)


@struct.dataclass
class Average:
    """The teacher's weights, of the student's structure: `params` and `batch_stats`."""

    params: Any
    batch_stats: Any


class Ema(Labeler):
    """Labels in eval mode.

    Args:
      student: the architecture.
      decay: share of the old average after an update, in 0..1. The first updates count more: after update i, from 0,
        the share is at most 1 - 1 / (i + 1).
    """

    def __init__(self, student: Functional, decay: float = 0.996):
        self._student = student
        self._decay = decay

    def init(self, params: Any, batch_stats: Any) -> Average:
        """The student itself, in memory of its own: the step donates both."""
        return jax.tree.map(jnp.copy, Average(params, batch_stats))

    def label(self, state: Average, weights: Any, views: Mapping[str, View], key: jax.Array) -> dict[str, PseudoLabel]:
        """See `Labeler.label`."""
        del weights, key
        images = interleave(*(view.image for view in views.values()))
        logits, _ = self._student.apply(state.params, state.batch_stats, images, train=False)
        return {
            name: from_logits(own, view.valid)
            for (name, view), own in zip(views.items(), deinterleave(logits, len(views)), strict=True)
        }

    def after_update(self, state: Average, params: Any, batch_stats: Any, step: jax.Array) -> Average:
        """The average with this student."""
        kept = jnp.minimum(1 - 1 / (step + 1), self._decay)

        def move(old: jax.Array, new: jax.Array) -> jax.Array:
            return (kept * old + (1 - kept) * new).astype(old.dtype)

        return jax.tree.map(move, state, Average(params, batch_stats))

    def student_weights(self, state: Average) -> tuple[Any, Any]:
        """The averaged weights."""
        return state.params, state.batch_stats
