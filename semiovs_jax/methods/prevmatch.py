"""PrevMatch (arXiv 2405.20610): UniMatch, whose views also learn from the labels of earlier students.

One to three of the latest snapshots that were the best so far label together. Their weight, mu, rises from 0 to 1 in
the first half of the run and falls back to 0 in the second.

Reference: `semiovs/semiovs_prevmatch.py`.
"""

from typing import get_args

import jax
import jax.numpy as jnp
import ml_collections

from semiovs_jax.losses import GateMode
from semiovs_jax.methods import unimatch
from semiovs_jax.methods.table import Method, Progress, Rule


def faults(config: ml_collections.ConfigDict) -> list[str]:
    """What is wrong with the names in `config.method.snapshots`."""
    if config.snapshots.gate in get_args(GateMode):
        return []
    return [f"config.method.snapshots.gate={config.snapshots.gate!r}: choose one of {', '.join(get_args(GateMode))}"]


def make(config: ml_collections.ConfigDict) -> Method:
    """The method of `config.method`: the keys of `unimatch.make`, and snapshots with confidence_threshold and gate."""
    rule = Rule(
        stream="unlabeled",
        labeler="snapshots",
        threshold=config.snapshots.confidence_threshold,
        gate=config.snapshots.gate,
        schedule=triangle,
    )
    return unimatch.with_terms("prevmatch", config, rule.expand(unimatch.SHARES, "_prev"))


def triangle(at: Progress) -> jax.Array:
    """From 0 in the first epoch linearly to 1 in the middle one and back to 0 after the last (the paper's mu)."""
    epoch = jnp.asarray(jnp.asarray(at.step) // at.steps_per_epoch, float)
    total = -(-at.total_steps // at.steps_per_epoch)
    peak = total // 2
    return jnp.where(epoch < peak, epoch / max(peak, 1), (total - epoch) / max(total - peak, 1))
