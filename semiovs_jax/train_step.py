"""The train step: views -> predictions -> labels -> terms -> update, one jit for every method.

Order and detail follow the reference trainers `semiovs/semiovs_{unimatch,prevmatch}.py` and `semiovs_semivl/semivl.py`;
what differs between methods stands in `methods.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from semiovs_jax import augment, labelers, losses
from semiovs_jax.bank import Bank, Draw, draw_snapshots, ensemble_logits
from semiovs_jax.labelers import OVS, PseudoLabel
from semiovs_jax.methods import CUTMIX_PARTNER, Method, Progress
from semiovs_jax.models.functional import Functional
from semiovs_jax.runtime.sharding import deinterleave, interleave, replicated
from semiovs_jax.train_state import TrainState

PERTURBATION_KEEP_PROBABILITY = 0.5
_BANK = 5  # what a step's key is folded with for the bank's draw; the keys of views are split from it

Labels = dict[tuple[str, str], PseudoLabel]  # pseudo-labels of weak views, by (labeler, stream)


@struct.dataclass
class Views:
    """What one step sees. Images are float [N, H, W, 3], normalized; planes are [N, H, W].

    Attributes:
      weak: weak view of each stream, by its name.
      s1: first strong view of each unlabeled stream, before CutMix.
      s2: second strong view, likewise.
      valid: bool plane of each stream, False on padding.
      label: int32, ground truth of the labeled stream, with the ignore index.
      labels: by every labeler but the student itself: the OVS, the bank of its snapshots, dense CLIP.
      box1: bool, CutMix boxes of the first strong views; empty without terms.
      box2: bool, of the second.
      keep: one bool [kN, C] for each perturbed feature level: the channels kept in the perturbed twin of the k
        weak views that are predicted jointly, interleaved.
    """

    weak: dict[str, jax.Array]
    s1: dict[str, jax.Array]
    s2: dict[str, jax.Array]
    valid: dict[str, jax.Array]
    label: jax.Array
    labels: Labels
    box1: jax.Array
    box2: jax.Array
    keep: tuple[jax.Array, ...]


class Predictions(NamedTuple):
    """Logits, float [N, H, W, K]: of the labeled weak view, and by stream of the unlabeled ones.

    Attributes:
      labeled: of the labeled weak view.
      labeled_fp: the same with perturbed features, which no term uses; None without terms.
      partner: eval-mode logits of weak views that are only pasted from, without gradient.
      weak: train-mode logits of the weak views.
      fp: the same with perturbed features.
      s1: of the CutMix-ed first strong views.
      s2: of the second.
    """

    labeled: jax.Array
    labeled_fp: jax.Array | None
    partner: dict[str, jax.Array]
    weak: dict[str, jax.Array]
    fp: dict[str, jax.Array]
    s1: dict[str, jax.Array]
    s2: dict[str, jax.Array]


class TermValue(NamedTuple):
    """One evaluated term: its loss, and how many of its valid pixels passed the gate."""

    loss: jax.Array
    passed: jax.Array
    valid: jax.Array


class Outcome(NamedTuple):
    """What the loss computes on the way; a step that does not use a part does not pay for it.

    Attributes:
      batch_stats: running statistics after the step's forward passes.
      supervised: the labeled stream's loss.
      terms: the consistency terms by name.
      confident: share of valid unlabeled pixels whose label passes the gate, by labeler.
      predictions: the logits.
      labels: pseudo-labels before CutMix.
    """

    batch_stats: Any
    supervised: jax.Array
    terms: dict[str, TermValue]
    confident: dict[str, jax.Array]
    predictions: Predictions
    labels: Labels


def make_views(
    key: jax.Array,
    batch: Mapping[str, Mapping[str, jax.Array]],
    method: Method,
    perturbed_channels: tuple[int, ...],
    ignore_index: int,
    frozen: Mapping[str, OVS],
    frozen_weights: Mapping[str, Any],
) -> Views:
    """Makes every view of a step from the batch's uint8 crops.

    Args:
      key: random key of this step.
      batch: streams of `data_pipelines.pipeline`, a dictionary each.
      method: its streams decide what is made.
      perturbed_channels: channels of each perturbed feature level of the student.
      ignore_index: the label left out of every loss.
      frozen: models that label inside the step, by labeler: "ovs" (without it, cached labels are read from the
        batch) and "dense_clip".
      frozen_weights: their weights, by labeler.
    """
    weak = {name: augment.weak_view(batch[name]["image"]) for name in method.streams}
    valid = {name: batch[name]["valid"] for name in method.streams}
    label = batch["labeled"]["label"].astype(jnp.int32)
    count, size = label.shape[:2]
    if not method.terms:
        no_boxes = jnp.zeros((0, size, size), bool)
        return Views(weak, {}, {}, valid, label, {}, no_boxes, no_boxes, ())

    strong1_key, strong2_key, box1_key, box2_key, keep_key = jax.random.split(key, 5)
    unlabeled = [name for name in method.streams if name != "labeled"]

    def strong(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(unlabeled))
        return {name: augment.strong_view(k, batch[name]["image"]) for name, k in zip(unlabeled, keys, strict=True)}

    def ask(labeler: str, stream: str) -> PseudoLabel:
        if labeler not in frozen:
            return _cached_label(batch[stream], with_confidence=method.reads_ovs_confidence)
        return _online_label(batch[stream], frozen[labeler], frozen_weights[labeler])

    labels = {
        (labeler, stream): ask(labeler, stream)
        for labeler, streams in method.labeled_by.items()
        if labeler in ("ovs", "dense_clip")
        for stream in streams
    }
    if ("ovs", "ood") in labels:
        trusted = functools.partial(labelers.trusted, ignore_index=ignore_index, threshold=method.ovs_threshold)
        labels["ovs", "ood"] = trusted(*labels["ovs", "ood"])

    twins = count * (1 + len(method.predicted_streams))
    keep_keys = jax.random.split(keep_key, len(perturbed_channels))
    return Views(
        weak=weak,
        valid=valid,
        label=label,
        s1=strong(strong1_key),
        s2=strong(strong2_key),
        labels=labels,
        box1=augment.cutmix_boxes(box1_key, count, size),
        box2=augment.cutmix_boxes(box2_key, count, size),
        keep=tuple(
            jax.random.bernoulli(k, PERTURBATION_KEEP_PROBABILITY, (twins, channels))
            for k, channels in zip(keep_keys, perturbed_channels, strict=True)
        ),
    )


def _cached_label(stream: Mapping[str, jax.Array], *, with_confidence: bool) -> PseudoLabel:
    """Labels that the batch holds, with the confidence that it holds or with 1."""
    label = stream["label"]
    confidence = augment.as_float(stream["confidence"]) / 255 if with_confidence else jnp.ones(label.shape, jnp.float32)
    return PseudoLabel(label, confidence, stream["valid"])


def _online_label(stream: Mapping[str, jax.Array], model: OVS, weights: Any) -> PseudoLabel:
    image = augment.as_float(stream["image"])
    _, height, width, _ = image.shape
    found = model.label(weights, image, label_size=(height, width))
    return found._replace(valid=found.valid & stream["valid"])


def predict(
    params: Any, batch_stats: Any, views: Views, student: Functional, method: Method
) -> tuple[Predictions, Any]:
    """All forward passes of a step, in the reference's order, each moving the running statistics.

    First the weak views that are only pasted from, in eval mode and without gradient; then, in train mode, the
    labeled and all predicted weak views jointly with their perturbed twin; then each stream's strong views.

    Returns:
      The logits, and the running statistics afterwards.
    """
    frozen = jax.lax.stop_gradient(params)
    streams = method.predicted_streams
    partner = {
        name: student.apply(frozen, batch_stats, views.weak[name], train=False)[0]
        for name in method.streams
        if name not in ("labeled", *streams)
    }

    if not streams:
        labeled, batch_stats = student.apply(params, batch_stats, views.weak["labeled"], train=True)
        return Predictions(labeled, None, partner, {}, {}, {}, {}), batch_stats

    joint = interleave(views.weak["labeled"], *(views.weak[name] for name in streams))
    (clean, perturbed), batch_stats = student.apply(params, batch_stats, joint, train=True, keep=views.keep)
    labeled, *weak = deinterleave(clean, 1 + len(streams))
    labeled_fp, *fp = deinterleave(perturbed, 1 + len(streams))

    s1, s2 = {}, {}
    for name in streams:
        # Pasted are the partner's own strong views, not yet mixed themselves.
        mixed1 = augment.paste(views.s1[name], views.s1[CUTMIX_PARTNER[name]], views.box1)
        mixed2 = augment.paste(views.s2[name], views.s2[CUTMIX_PARTNER[name]], views.box2)
        strong, batch_stats = student.apply(params, batch_stats, interleave(mixed1, mixed2), train=True)
        s1[name], s2[name] = deinterleave(strong, 2)

    by_name = functools.partial(zip, streams, strict=True)
    return Predictions(labeled, labeled_fp, partner, dict(by_name(weak)), dict(by_name(fp)), s1, s2), batch_stats


def label_by_bank(views: Views, bank: Bank, draw: Draw, student: Functional, streams: tuple[str, ...]) -> Views:
    """Adds the labels of the drawn snapshots together; they are invalid while the bank is empty."""
    logits = ensemble_logits(bank, draw, student, interleave(*(views.weak[name] for name in streams)))
    labels = dict(views.labels)
    for name, own in zip(streams, deinterleave(logits, len(streams)), strict=True):
        labels["bank", name] = labelers.from_logits(own, views.valid[name] & (draw.used > 0))
    return dataclasses.replace(views, labels=labels)


def label_by_student(views: Views, predictions: Predictions) -> Labels:
    """Labels by the student's own predictions of the weak views."""
    logits = predictions.partner | predictions.weak
    return {("student", name): labelers.from_logits(z, views.valid[name]) for name, z in logits.items()}


def evaluate_terms(method: Method, views: Views, predictions: Predictions, labels: Labels) -> dict[str, TermValue]:
    """Evaluates the method's table, one gated cross-entropy a row."""
    boxes = {"s1": views.box1, "s2": views.box2}
    values = {}
    for term in method.terms:
        logits = getattr(predictions, term.prediction)[term.stream]
        target = labels[term.labeler, term.stream]
        if (box := boxes.get(term.prediction)) is not None:
            pasted = labels[term.pasted_labeler, CUTMIX_PARTNER[term.stream]]
            target = PseudoLabel(*(augment.paste(own, other, box) for own, other in zip(target, pasted, strict=True)))
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
    weights: Mapping[str, jax.typing.ArrayLike],
    recipe: "Recipe",
) -> tuple[jax.Array, Outcome]:
    """The method's loss over the global batch.

    Args:
      params: the student's parameters.
      batch_stats: its running statistics.
      views: of this step.
      weights: of the terms, by name.
      recipe: the static side of the step.

    Returns:
      The loss, a scalar, and everything computed on the way.
    """
    method = recipe.method
    predictions, batch_stats = predict(params, batch_stats, views, recipe.student, method)
    labels = views.labels | label_by_student(views, predictions)

    known = views.valid["labeled"] & (views.label != recipe.ignore_index)
    supervised = losses.masked_mean(losses.cross_entropy(predictions.labeled, views.label), known)
    terms = evaluate_terms(method, views, predictions, labels)
    averaged = [term.name for term in method.terms if term.in_divisor]
    added = [term.name for term in method.terms if not term.in_divisor]
    total = supervised + sum(weights[name] * terms[name].loss for name in averaged)
    total = total / (1.0 + sum(weights[name] for name in averaged))
    total = total + sum(weights[name] * terms[name].loss for name in added)

    confident = {
        labeler: _confident(labels[labeler, "unlabeled"], method.threshold_of(labeler, "unlabeled"), total.dtype)
        for labeler in dict.fromkeys(term.labeler for term in method.terms if term.stream == "unlabeled")
    }
    return total, Outcome(batch_stats, supervised, terms, confident, predictions, labels)


def _confident(label: PseudoLabel, threshold: float, dtype: jnp.dtype) -> jax.Array:
    return losses.masked_mean((label.confidence >= threshold).astype(dtype), label.valid)


class Update(NamedTuple):
    """One update: the next state, the loss before it, its gradient, and what was computed on the way."""

    state: TrainState
    loss: jax.Array
    gradient: Any
    outcome: Outcome


def update(state: TrainState, views: Views, recipe: "Recipe") -> Update:
    """One update from given views."""
    loss_fn = functools.partial(total_loss, views=views, weights=recipe.weights(state), recipe=recipe)
    (loss, outcome), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.batch_stats)
    updates, opt_state = recipe.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    done = TrainState(state.step + 1, params, outcome.batch_stats, opt_state, state.bank)
    return Update(done, loss, gradient, outcome)


def scalars(loss: jax.Array, outcome: Outcome) -> dict[str, jax.Array]:
    """What is logged of a step.

    Returns:
      loss and loss_x; with terms also mask_ratio (share of unlabeled pixels that the student labels with confidence;
      mask_ratio_<labeler> of other labelers) and, a term, loss_<term> and passed_<term> (share of its valid pixels
      behind the gate).
    """
    values = {"loss": loss, "loss_x": outcome.supervised}
    for labeler, share in outcome.confident.items():
        values["mask_ratio" if labeler == "student" else f"mask_ratio_{labeler}"] = share
    for name, term in outcome.terms.items():
        values[f"loss_{name}"] = term.loss
        values[f"passed_{name}"] = term.passed / jnp.maximum(term.valid, 1)
    return values


class Recipe(NamedTuple):
    """The static side of a step: everything but state, batch and weights of frozen models.

    Attributes:
      student: the student as a pure function.
      perturbed_channels: channels of each perturbed feature level of the student.
      method: the table of terms.
      optimizer: the optax transformation.
      ignore_index: the label left out of every loss.
      seed: of all randomness in the step.
      steps_per_epoch: updates in one pass over the unlabeled stream, which schedules of terms depend on.
      total_steps: length of the run, likewise.
      frozen: models that label inside the step, by labeler: "ovs" (without it, cached labels are read), "dense_clip".
    """

    student: Functional
    perturbed_channels: tuple[int, ...]
    method: Method
    optimizer: optax.GradientTransformation
    ignore_index: int
    seed: int
    steps_per_epoch: int
    total_steps: int
    frozen: Mapping[str, OVS] = {}

    def key(self, step: jax.Array) -> jax.Array:
        """Random key of a step, a function of the seed and the step alone."""
        return jax.random.fold_in(jax.random.key(self.seed), step)

    def views(
        self,
        step: jax.Array,
        batch: Mapping[str, Any],
        frozen_weights: Mapping[str, Any],
        bank: Bank | None = None,
    ) -> Views:
        """The views of step `step`, a function of the seed, the step, the batch and the labelers alone."""
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        views = make_views(
            key, batch, self.method, self.perturbed_channels, self.ignore_index, self.frozen, frozen_weights
        )
        if bank is None:
            return views
        draw = draw_snapshots(jax.random.fold_in(key, _BANK), bank, self.method.bank_draws)
        return label_by_bank(views, bank, draw, self.student, self.method.labeled_by["bank"])

    def weights(self, state: TrainState) -> dict[str, jax.typing.ArrayLike]:
        """The weights of the terms in a step from `state`, by name."""
        snapshots = 0 if state.bank is None else state.bank.size
        return self.method.weights(Progress(state.step, self.steps_per_epoch, self.total_steps, snapshots))


TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """The jitted step (state, batch, frozen_weights) -> (state, metrics), its state donated and replicated.

    `batch` is one batch of `data_pipelines.pipeline`, sharded over the mesh axis "data"; batch statistics and loss
    denominators are global, so the result does not depend on the number of devices.
    """

    def train_step(state: TrainState, batch: Any, frozen_weights: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        done = update(state, recipe.views(state.step, batch, frozen_weights, state.bank), recipe)
        return done.state, scalars(done.loss, done.outcome)

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))
