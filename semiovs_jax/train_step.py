"""The train step: views -> predictions -> labels -> terms -> update, one jit for every method.

Order and detail follow the reference trainer `semiovs/semiovs_unimatch.py`; what differs between methods stands in
`methods.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from semiovs_jax import augment, labelers, losses
from semiovs_jax.labelers import OVS, PseudoLabel
from semiovs_jax.methods import CUTMIX_PARTNER, Method
from semiovs_jax.models.functional import Functional
from semiovs_jax.sharding import deinterleave, interleave, replicated
from semiovs_jax.train_state import TrainState

PERTURBATION_KEEP_PROBABILITY = 0.5


@struct.dataclass
class Views:
    """What one step sees. Images are float [N, H, W, 3], normalized; planes are [N, H, W].

    Attributes:
      weak: weak view of each stream, by its name.
      s1: first strong view of each unlabeled stream, before CutMix.
      s2: second strong view, likewise.
      valid: bool plane of each stream, False on padding.
      label: int32, ground truth of the labeled stream, with the ignore index.
      ovs: OVS pseudo-labels of the OOD stream, None without one.
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
    ovs: PseudoLabel | None
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
      confident: share of valid unlabeled pixels whose student label passes the gate (0 without such a stream).
      predictions: the logits.
      labels: pseudo-labels by (labeler, stream), before CutMix.
    """

    batch_stats: Any
    supervised: jax.Array
    terms: dict[str, TermValue]
    confident: jax.Array
    predictions: Predictions
    labels: dict[tuple[str, str], PseudoLabel]


def make_views(
    key: jax.Array,
    batch: Mapping[str, Mapping[str, jax.Array]],
    method: Method,
    perturbed_channels: tuple[int, ...],
    ignore_index: int,
    ovs: OVS | None = None,
    ovs_weights: Any = None,
) -> Views:
    """Makes every view of a step from the batch's uint8 crops.

    Args:
      key: random key of this step.
      batch: streams of `data_pipelines.pipeline`, a dictionary each.
      method: its streams decide what is made.
      perturbed_channels: channels of each perturbed feature level of the student.
      ignore_index: the label left out of every loss.
      ovs: labels the OOD stream on the fly; None reads the cached labels from the batch.
      ovs_weights: the OVS's weights.
    """
    weak = {name: augment.weak_view(batch[name]["image"]) for name in method.streams}
    valid = {name: batch[name]["valid"] for name in method.streams}
    label = batch["labeled"]["label"].astype(jnp.int32)
    count, size = label.shape[:2]
    if not method.terms:
        no_boxes = jnp.zeros((0, size, size), bool)
        return Views(weak, {}, {}, valid, label, None, no_boxes, no_boxes, ())

    strong1_key, strong2_key, box1_key, box2_key, keep_key = jax.random.split(key, 5)
    unlabeled = [name for name in method.streams if name != "labeled"]

    def strong(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(unlabeled))
        return {name: augment.strong_view(k, batch[name]["image"]) for name, k in zip(unlabeled, keys, strict=True)}

    twins = count * (1 + len(method.predicted_streams))
    keep_keys = jax.random.split(keep_key, len(perturbed_channels))
    return Views(
        weak=weak,
        valid=valid,
        label=label,
        s1=strong(strong1_key),
        s2=strong(strong2_key),
        ovs=_ovs_label(batch["ood"], method, ignore_index, ovs, ovs_weights) if "ood" in method.streams else None,
        box1=augment.cutmix_boxes(box1_key, count, size),
        box2=augment.cutmix_boxes(box2_key, count, size),
        keep=tuple(
            jax.random.bernoulli(k, PERTURBATION_KEEP_PROBABILITY, (twins, channels))
            for k, channels in zip(keep_keys, perturbed_channels, strict=True)
        ),
    )


def _ovs_label(
    stream: Mapping[str, jax.Array], method: Method, ignore_index: int, ovs: OVS | None, weights: Any
) -> PseudoLabel:
    if ovs is None:
        found = PseudoLabel(stream["label"], augment.as_float(stream["confidence"]) / 255, stream["valid"])
    else:
        image = augment.as_float(stream["image"])
        _, height, width, _ = image.shape
        found = ovs.label(weights, image, canvas=(height, width))
        found = found._replace(valid=found.valid & stream["valid"])
    return labelers.trusted(*found, ignore_index=ignore_index, threshold=method.ovs_threshold)


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


def label_streams(views: Views, predictions: Predictions) -> dict[tuple[str, str], PseudoLabel]:
    """Pseudo-labels of the weak views, by (labeler, stream)."""
    logits = predictions.partner | predictions.weak
    labels = {("student", name): labelers.from_logits(z, views.valid[name]) for name, z in logits.items()}
    if views.ovs is not None:
        labels["ovs", "ood"] = views.ovs
    return labels


def evaluate_terms(
    method: Method, views: Views, predictions: Predictions, labels: Mapping[tuple[str, str], PseudoLabel]
) -> dict[str, TermValue]:
    """Evaluates the method's table, one gated cross-entropy a row."""
    boxes = {"s1": views.box1, "s2": views.box2}
    values = {}
    for term in method.terms:
        logits = getattr(predictions, term.prediction)[term.stream]
        target = labels[term.labeler, term.stream]
        if (box := boxes.get(term.prediction)) is not None:
            pasted = labels[term.pasted_labeler, CUTMIX_PARTNER[term.stream]]
            target = PseudoLabel(*(augment.paste(own, other, box) for own, other in zip(target, pasted, strict=True)))
        loss = losses.cross_entropy(logits, target.label)
        passed = target.valid & (target.confidence >= method.confidence_threshold)
        values[term.name] = TermValue(
            losses.gated_mean(loss, target.confidence, target.valid, method.confidence_threshold),
            jnp.count_nonzero(passed),
            jnp.count_nonzero(target.valid),
        )
    return values


def total_loss(
    params: Any, batch_stats: Any, views: Views, student: Functional, method: Method, ignore_index: int
) -> tuple[jax.Array, Outcome]:
    """The weighted mean of the supervised loss and the method's terms, over the global batch.

    Returns:
      The loss, a scalar, and everything computed on the way.
    """
    predictions, batch_stats = predict(params, batch_stats, views, student, method)
    labels = label_streams(views, predictions)

    known = views.valid["labeled"] & (views.label != ignore_index)
    supervised = losses.masked_mean(losses.cross_entropy(predictions.labeled, views.label), known)
    terms = evaluate_terms(method, views, predictions, labels)
    total = supervised + sum(term.weight * terms[term.name].loss for term in method.terms)

    own = labels.get(("student", "unlabeled"))
    confident = (
        jnp.zeros(())
        if own is None
        else losses.masked_mean((own.confidence >= method.confidence_threshold).astype(total.dtype), own.valid)
    )
    return total / method.total_weight, Outcome(batch_stats, supervised, terms, confident, predictions, labels)


class Update(NamedTuple):
    """One update: the next state, the loss before it, its gradient, and what was computed on the way."""

    state: TrainState
    loss: jax.Array
    gradient: Any
    outcome: Outcome


def update(
    state: TrainState,
    views: Views,
    student: Functional,
    method: Method,
    optimizer: optax.GradientTransformation,
    ignore_index: int,
) -> Update:
    """One update from given views."""
    loss_fn = functools.partial(total_loss, student=student, method=method, ignore_index=ignore_index)
    (loss, outcome), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.batch_stats, views)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return Update(TrainState(state.step + 1, params, outcome.batch_stats, opt_state), loss, gradient, outcome)


def scalars(loss: jax.Array, outcome: Outcome) -> dict[str, jax.Array]:
    """What is logged of a step.

    Returns:
      loss and loss_x; with terms also mask_ratio (share of confident unlabeled pixels) and, a term, loss_<term> and
      passed_<term> (share of its valid pixels behind the gate).
    """
    values = {"loss": loss, "loss_x": outcome.supervised}
    if outcome.terms:
        values["mask_ratio"] = outcome.confident
    for name, term in outcome.terms.items():
        values[f"loss_{name}"] = term.loss
        values[f"passed_{name}"] = term.passed / jnp.maximum(term.valid, 1)
    return values


class Recipe(NamedTuple):
    """The static side of a step: everything but state, batch and OVS weights.

    Attributes:
      student: the student as a pure function.
      perturbed_channels: channels of each perturbed feature level of the student.
      method: the table of terms.
      optimizer: the optax transformation.
      ignore_index: the label left out of every loss.
      seed: of all randomness in the step.
      ovs: labels the OOD stream on the fly; None reads cached labels.
    """

    student: Functional
    perturbed_channels: tuple[int, ...]
    method: Method
    optimizer: optax.GradientTransformation
    ignore_index: int
    seed: int
    ovs: OVS | None = None

    def views(self, step: jax.Array, batch: Mapping[str, Any], ovs_weights: Any) -> Views:
        """The views of step `step`, a function of the seed, the step and the batch alone."""
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        return make_views(key, batch, self.method, self.perturbed_channels, self.ignore_index, self.ovs, ovs_weights)


TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """The jitted step (state, batch, ovs_weights) -> (state, metrics), its state donated and replicated.

    `batch` is one batch of `data_pipelines.pipeline`, sharded over the mesh axis "data"; batch statistics and loss
    denominators are global, so the result does not depend on the number of devices.
    """

    def train_step(state: TrainState, batch: Any, ovs_weights: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        views = recipe.views(state.step, batch, ovs_weights)
        done = update(state, views, recipe.student, recipe.method, recipe.optimizer, recipe.ignore_index)
        return done.state, scalars(done.loss, done.outcome)

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))
