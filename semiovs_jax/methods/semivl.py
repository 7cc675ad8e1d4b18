"""SemiVL (arXiv 2311.16241): UniMatch, whose views also learn from the labels of a frozen CLIP.

Their weight falls from the config's to 0 in the course of the run. It is not part of the total's denominator.

Reference: `semiovs_semivl/semivl.py`.
"""

import jax
import jax.numpy as jnp
import ml_collections

from semiovs_jax.methods import unimatch
from semiovs_jax.methods.table import Method, Progress, Rule


def make(config: ml_collections.ConfigDict) -> Method:
    """The method of `config.method`: the keys of `unimatch.make`, and maskclip with weight and confidence_threshold."""
    rule = Rule(
        stream="unlabeled",
        labeler="maskclip",
        weight=config.maskclip.weight,
        threshold=config.maskclip.confidence_threshold,
        mean_over="all",
        schedule=fade,
        normalized=False,
    )
    return unimatch.with_terms("semivl", config, rule.expand(unimatch.SHARES, "_mc"))


def fade(at: Progress) -> jax.Array:
    """From 1 at the first step linearly to 0 after the last."""
    return 1 - jnp.asarray(at.step, float) / at.total_steps
