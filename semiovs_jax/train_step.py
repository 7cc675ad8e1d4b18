"""The train step: views -> labels -> predictions -> terms -> update, one jit for every method.

Order and detail follow the reference trainers `semiovs/semiovs_{unimatch,prevmatch}.py` and `semiovs_semivl/semivl.py`;
what differs between methods is data in `semiovs_jax.methods`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from semiovs_jax import augment, losses
from semiovs_jax.forward import Predictions, predict
from semiovs_jax.labelers import Labeler, PseudoLabel, View
from semiovs_jax.labelers.student import from_logits
from semiovs_jax.methods import STUDENT, Method, Progress
from semiovs_jax.models.functional import Functional
from semiovs_jax.optim import FROZEN
from semiovs_jax.runtime.sharding import replicated, state_shardings
from semiovs_jax.train_state import TrainState
from semiovs_jax.views import Batch, Views, make_views, of_partner

_LABELERS = 5  # the step's key is folded with this and the following numbers for the labelers, and split for the views

Labels = dict[tuple[str, str], PseudoLabel]  # pseudo-labels of weak views, by (labeler, stream)


class TermValue(NamedTuple):
    """One evaluated term: its loss, its number of valid pixels, and how many of these are above the threshold."""

    loss: jax.Array
    passed: jax.Array
    valid: jax.Array


class Outcome(NamedTuple):
    """Everything the loss computes; a step that does not use a part does not pay for it.

    Attributes:
      batch_stats: running statistics after the step's forward passes.
      supervised: the labeled stream's loss.
      terms: the consistency terms by name.
      confident: share of valid unlabeled pixels whose label is above the threshold, by labeler.
      predictions: the logits.
      labels: pseudo-labels before CutMix.
    """

    batch_stats: Any
    supervised: jax.Array
    terms: dict[str, TermValue]
    confident: dict[str, jax.Array]
    predictions: Predictions
    labels: Labels


class StepSpec(NamedTuple):
    """The static side of a step: everything but state, batch and the labelers' weights.

    Attributes:
      student: the student as a pure function.
      perturbed_channels: channels of each feature level of the student that takes masks.
      method: the table of terms.
      labelers: all but the student, by name.
      optimizer: the optax transformation.
      ignore_index: the label left out of every loss.
      seed: of all randomness in the step.
      steps_per_epoch: updates in one pass over the unlabeled stream, for schedules of terms.
      total_steps: length of the run, for schedules of terms.
      learning_rates: by group of parameters, for the metrics.
      parameter_groups: maps the parameters to a tree of their groups; None if all are trained.
      skips_bad_updates: whether an update whose loss or gradient is not finite is skipped.
    """

    student: Functional
    perturbed_channels: tuple[int, ...]
    method: Method
    labelers: Mapping[str, Labeler]
    optimizer: optax.GradientTransformation
    ignore_index: int
    seed: int
    steps_per_epoch: int
    total_steps: int
    learning_rates: Mapping[str, optax.Schedule] = {}
    parameter_groups: Callable[[Any], Any] | None = None
    skips_bad_updates: bool = False

    def key(self, step: jax.Array) -> jax.Array:
        """Random key of a step, a function of the seed and the step alone."""
        return jax.random.fold_in(jax.random.key(self.seed), step)

    def gradient_norm(self, gradient: Any) -> jax.Array:
        """Euclidean norm of the gradient of all trained parameters, float []."""
        leaves = jax.tree.leaves(gradient)
        if self.parameter_groups is not None:
            groups = jax.tree.leaves(self.parameter_groups(gradient))
            leaves = [leaf for leaf, group in zip(leaves, groups, strict=True) if group != FROZEN]
        return optax.global_norm(leaves)

    def term_weights(self, state: TrainState) -> dict[str, jax.typing.ArrayLike]:
        """The weights of the terms in a step from `state`, by name."""
        ready = {name: labeler.ready(state.labeler(name)) for name, labeler in self.labelers.items()}
        return self.method.weights(Progress(state.step, self.steps_per_epoch, self.total_steps), ready)


def label_views(
    key: jax.Array, batch: Batch, views: Views, state: TrainState, weights: Mapping[str, Any], spec: StepSpec
) -> Labels:
    """The labels of all labelers but the student.

    Args:
      key: random key of this step.
      batch: the streams of the views.
      views: of this step.
      state: before the update.
      weights: frozen arrays by labeler.
      spec: the static side of the step.
    """
    labels: Labels = {}
    for index, (name, labeler) in enumerate(spec.labelers.items()):
        given = {
            stream: View(
                views.weak[stream],
                batch[stream]["image"],
                views.valid[stream],
                batch[stream].get("label"),
                batch[stream].get("confidence"),
            )
            for stream in spec.method.labeled_by[name]
        }
        own_key = jax.random.fold_in(key, _LABELERS + index)
        found = labeler.label(state.labeler(name), weights[name], given, own_key)
        labels |= {(name, stream): label for stream, label in found.items()}
    return labels


def label_by_student(views: Views, predictions: Predictions) -> Labels:
    """Labels by the student's own predictions of the weak views."""
    logits = {**predictions.frozen, **predictions.weak}
    return {(STUDENT, name): from_logits(z, views.valid[name]) for name, z in logits.items()}


def evaluate_terms(method: Method, views: Views, predictions: Predictions, labels: Labels) -> dict[str, TermValue]:
    """Evaluates the method's table, one gated cross-entropy a row."""
    boxes = {"s1": views.box1, "s2": views.box2}
    values = {}
    for term in method.terms:
        logits = getattr(predictions, term.prediction)[term.stream]
        target = labels[term.labeler, term.stream]
        if (box := boxes.get(term.prediction)) is not None:
            by_stream = {stream: label for (name, stream), label in labels.items() if name == term.pasted_labeler}
            other = of_partner(by_stream, term.stream, method)
            target = PseudoLabel(*(augment.paste(*planes, box) for planes in zip(target, other, strict=True)))
        values[term.name] = TermValue(
            losses.gated_mean(
                losses.cross_entropy(logits, target.label),
                target.confidence,
                target.valid,
                term.threshold,
                term.gate,
                mean_over=term.mean_over,
            ),
            jnp.count_nonzero(target.valid & (target.confidence >= term.threshold)),
            jnp.count_nonzero(target.valid),
        )
    return values


def total_loss(
    params: Any,
    batch_stats: Any,
    views: Views,
    labels: Labels,
    weights: Mapping[str, jax.typing.ArrayLike],
    spec: StepSpec,
) -> tuple[jax.Array, Outcome]:
    """The method's loss over the global batch.

    Args:
      params: the student's parameters.
      batch_stats: its running statistics.
      views: of this step.
      labels: of all labelers but the student.
      weights: of the terms, by name.
      spec: the static side of the step.

    Returns:
      The loss, a scalar, and everything computed on the way.
    """
    method = spec.method
    predictions, batch_stats = predict(params, batch_stats, views, spec.student, method)
    labels = labels | label_by_student(views, predictions)

    known = views.valid["labeled"] & (views.label != spec.ignore_index)
    supervised = losses.masked_mean(losses.cross_entropy(predictions.labeled, views.label), known)
    terms = evaluate_terms(method, views, predictions, labels)
    averaged = [term.name for term in method.terms if term.normalized]
    added = [term.name for term in method.terms if not term.normalized]
    total = supervised + sum(weights[name] * terms[name].loss for name in averaged)
    total = total / (1.0 + sum(weights[name] for name in averaged))
    total = total + sum(weights[name] * terms[name].loss for name in added)

    confident = {
        labeler: _confident(labels[labeler, "unlabeled"], method.threshold_of(labeler, "unlabeled"), total.dtype)
        for labeler in _labelers_of(method, "unlabeled")
    }
    return total, Outcome(batch_stats, supervised, terms, confident, predictions, labels)


def _labelers_of(method: Method, stream: str) -> list[str]:
    """The labelers of a stream's terms, in the order of the table."""
    return list(dict.fromkeys(term.labeler for term in method.terms if term.stream == stream))


def _confident(label: PseudoLabel, threshold: float, dtype: jnp.dtype) -> jax.Array:
    return losses.masked_mean((label.confidence >= threshold).astype(dtype), label.valid)


class Update(NamedTuple):
    """One update: the next state, the loss before it, its gradient, and everything computed on the way."""

    state: TrainState
    loss: jax.Array
    gradient: Any
    outcome: Outcome


def update(state: TrainState, views: Views, labels: Labels, spec: StepSpec) -> Update:
    """One update from given views and the labels of all labelers but the student."""
    loss_fn = functools.partial(total_loss, views=views, labels=labels, weights=spec.term_weights(state), spec=spec)
    (loss, outcome), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.batch_stats)
    updates, opt_state = spec.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    labelers = {
        name: spec.labelers[name].after_update(own, params, outcome.batch_stats, state.step)
        for name, own in state.labelers.items()
    }
    done = TrainState(state.step + 1, params, outcome.batch_stats, opt_state, labelers)
    return Update(done, loss, gradient, outcome)


def skip_unless(wanted: jax.Array, old: TrainState, new: TrainState) -> TrainState:
    """The new state if `wanted`, bool [], else the old one.

    The step number goes on in any case, and with it data and random keys. So does the schedule of the learning rate.
    """

    def choose(old: Any, new: Any) -> Any:
        if isinstance(old, optax.ScaleByScheduleState):
            return new
        return jnp.where(wanted, new, old)

    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    chosen = jax.tree.map(choose, old, new, is_leaf=is_schedule)
    return dataclasses.replace(chosen, step=new.step)


def scalars(loss: jax.Array, outcome: Outcome, method: Method) -> dict[str, jax.Array]:
    """The metrics of a step.

    Returns:
      loss and loss_x; with terms also mask_ratio (share of valid unlabeled pixels whose label by the method's first
      labeler is above its threshold; mask_ratio_<labeler> of the others) and, for each term, loss_<term> and
      passed_<term> (share of its valid pixels above the threshold).
    """
    values = {"loss": loss, "loss_x": outcome.supervised}
    for index, labeler in enumerate(_labelers_of(method, "unlabeled")):
        values[f"mask_ratio_{labeler}" if index else "mask_ratio"] = outcome.confident[labeler]
    for name, term in outcome.terms.items():
        values[f"loss_{name}"] = term.loss
        values[f"passed_{name}"] = term.passed / jnp.maximum(term.valid, 1)
    return values


TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(spec: StepSpec, mesh: Mesh) -> TrainStep:
    """The jitted step (state, batch, labeler_weights) -> (state, metrics), its state donated.

    The metrics are those of `scalars`, gradient_norm, and the learning rates of this update, learning_rate_<group>.
    `batch` is one batch of `data_pipelines.pipeline`, split over the devices; batch statistics and loss denominators
    are global, so the result does not depend on the number of devices.
    """

    def train_step(state: TrainState, batch: Batch, weights: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = spec.key(state.step)
        views = make_views(key, batch, spec.method, spec.perturbed_channels)
        labels = label_views(key, batch, views, state, weights, spec)
        done = update(state, views, labels, spec)
        metrics = scalars(done.loss, done.outcome, spec.method)
        metrics["gradient_norm"] = spec.gradient_norm(done.gradient)
        metrics |= {f"learning_rate_{group}": rate(state.step) for group, rate in spec.learning_rates.items()}
        new = done.state
        if spec.skips_bad_updates:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
            new = skip_unless(finite, state, new)
        return _shared(new, mesh), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(None, replicated(mesh)))


def make_after_evaluation(spec: StepSpec, mesh: Mesh) -> Callable[[TrainState, float], TrainState]:
    """The jitted function (state, miou) -> state that lets labelers learn of an evaluation; its state is donated."""

    def after_evaluation(state: TrainState, miou: jax.Array) -> TrainState:
        labelers = {
            name: spec.labelers[name].after_evaluation(own, state.params, state.batch_stats, miou)
            for name, own in state.labelers.items()
        }
        return _shared(dataclasses.replace(state, labelers=labelers), mesh)

    return jax.jit(after_evaluation, donate_argnums=0)


def _shared(state: TrainState, mesh: Mesh) -> TrainState:
    """The state as the devices of the mesh share it; without this, the compiler would choose."""
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh))
