"""Images, labels and predictions of one step, for the visualization panel."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from semiovs_jax.runtime.sharding import replicated
from semiovs_jax.train_state import TrainState
from semiovs_jax.train_step import Outcome, StepSpec, label_views, total_loss
from semiovs_jax.views import make_views, mixed_views

_TITLES = {"unlabeled": "unlabeled", "ood": "OOD"}


def make_inspection(spec: StepSpec, mesh: Mesh, images: int) -> Callable[[TrainState, Any, Any], dict[str, jax.Array]]:
    """The function (state, batch, labeler_weights) -> columns by title, for `reporting.Report.panel`.

    Columns hold the first `images` rows of the batch, on every device: normalized float images, and label planes in
    which pixels that are not learned from have the ignore index.
    """
    titles: list[str] = []  # jit sorts the keys of dictionaries; columns have an order
    # It runs once for each panel: LLVM would optimize it for longer than that saves.
    quick = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None

    @functools.partial(jax.jit, out_shardings=replicated(mesh), compiler_options=quick)
    def columns(state: TrainState, batch: Any, weights: Any) -> list[jax.Array]:
        key = spec.key(state.step)
        views = make_views(key, batch, spec.method, spec.perturbed_channels)
        labels = label_views(key, batch, views, state, weights, spec)
        _, outcome = total_loss(state.params, state.batch_stats, views, labels, spec.term_weights(state), spec)
        found = {
            "labeled": views.weak["labeled"],
            "ground truth": views.label,
            "prediction": jnp.argmax(outcome.predictions.labeled, -1),
        }
        for stream in spec.method.predicted_streams:
            title = _TITLES[stream]
            found[f"{title}, weak"] = views.weak[stream]
            for labeler in dict.fromkeys(term.labeler for term in spec.method.terms if term.stream == stream):
                found[f"{title}, label by {labeler}"] = _gated(outcome, labeler, stream, spec)
            found[f"{title}, strong + CutMix"], _ = mixed_views(views, stream, spec.method)
            found[f"{title}, prediction"] = jnp.argmax(outcome.predictions.s1[stream], -1)
        titles[:] = found
        return [column[:images] for column in found.values()]

    def inspect(state: TrainState, batch: Any, weights: Any) -> dict[str, jax.Array]:
        values = columns(state, batch, weights)
        return dict(zip(titles, values, strict=True))

    return inspect


def _gated(outcome: Outcome, labeler: str, stream: str, spec: StepSpec) -> jax.Array:
    label = outcome.labels[labeler, stream]
    learned = label.valid & (label.confidence >= spec.method.threshold_of(labeler, stream))
    return jnp.where(learned, label.label, spec.ignore_index)
