"""What a step sees and says, as the columns of a panel."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from semiovs_jax import augment
from semiovs_jax.methods import CUTMIX_PARTNER
from semiovs_jax.runtime.sharding import replicated
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import Outcome, Recipe, total_loss

_TITLES = {"unlabeled": "unlabeled", "ood": "OOD"}
_LABELERS = {"student": "student", "bank": "snapshots", "ovs": "ovs", "dense_clip": "dense CLIP"}


def make_inspection(recipe: Recipe, mesh: Mesh, images: int) -> Callable[[TrainState, Any, Any], dict[str, jax.Array]]:
    """The function (state, batch, frozen_weights) -> columns by title, for `reporting.Report.panel`.

    Columns hold the first `images` rows of the batch, on every device: normalized float images, and label planes in
    which pixels that are not learned from have the ignore index.
    """
    titles: list[str] = []  # jit sorts the keys of dictionaries; columns have an order

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def columns(state: TrainState, batch: Any, frozen_weights: Any) -> list[jax.Array]:
        views = recipe.views(state.step, batch, frozen_weights, state.bank)
        _, outcome = total_loss(state.params, state.batch_stats, views, recipe.weights(state), recipe)
        found = {
            "labeled": views.weak["labeled"],
            "ground truth": views.label,
            "prediction": jnp.argmax(outcome.predictions.labeled, -1),
        }
        for stream in recipe.method.predicted_streams:
            title = _TITLES[stream]
            found[f"{title}, weak"] = views.weak[stream]
            for labeler in dict.fromkeys(term.labeler for term in recipe.method.terms if term.stream == stream):
                found[f"{title}, label by {_LABELERS[labeler]}"] = _gated(outcome, labeler, stream, recipe)
            mixed = augment.paste(views.s1[stream], views.s1[CUTMIX_PARTNER[stream]], views.box1)
            found[f"{title}, strong + CutMix"] = mixed
            found[f"{title}, prediction"] = jnp.argmax(outcome.predictions.s1[stream], -1)
        titles[:] = found
        return [column[:images] for column in found.values()]

    def inspect(state: TrainState, batch: Any, frozen_weights: Any) -> dict[str, jax.Array]:
        values = columns(state, batch, frozen_weights)
        return dict(zip(titles, values, strict=True))

    return inspect


def _gated(outcome: Outcome, labeler: str, stream: str, recipe: Recipe) -> jax.Array:
    label = outcome.labels[labeler, stream]
    learned = label.valid & (label.confidence >= recipe.method.threshold_of(labeler, stream))
    return jnp.where(learned, label.label, recipe.ignore_index)
