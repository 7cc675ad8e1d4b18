"""Methods as tables: a method is the consistency terms it adds to the supervised loss.

Sources: UniMatch (arXiv 2208.09910, eq. 4-8); PrevMatch (arXiv 2405.20610); SemiVL (arXiv 2311.16241); SemiOVS (arXiv
2507.03302, section 3.3) and its reference trainers `semiovs/semiovs_{unimatch,prevmatch}.py` and
`semiovs_semivl/semivl.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import ml_collections

from data_pipelines.errors import InputError
from semiovs_jax import schedules
from semiovs_jax.losses import GateMode, Pixels

# Whose strong views, and whose labels, are pasted into a stream's strong views by CutMix.
CUTMIX_PARTNER = {"unlabeled": "mix", "ood": "unlabeled"}

NAMES = ("supervised", "unimatch", "prevmatch", "semivl")
OOD = ("none", "unlabeled", "ovs")


class Progress(NamedTuple):
    """Where a run stands, which is what the weights of terms depend on.

    Attributes:
      step: int32 [], updates done.
      steps_per_epoch: updates in one pass over the unlabeled stream.
      total_steps: length of the run.
      snapshots: int32 [], snapshots in the bank.
    """

    step: jax.typing.ArrayLike
    steps_per_epoch: int
    total_steps: int
    snapshots: jax.typing.ArrayLike = 0


def _triangle(at: Progress) -> jax.Array:
    total_epochs = -(-at.total_steps // at.steps_per_epoch)
    return schedules.triangle(jnp.asarray(at.step) // at.steps_per_epoch, total_epochs)


def _fade(at: Progress) -> jax.Array:
    return 1 - jnp.asarray(at.step, float) / at.total_steps


# By name, what a term's weight is multiplied with in the course of a run.
SCHEDULES: dict[str, Callable[[Progress], Any]] = {
    "constant": lambda at: 1.0,
    "triangle": _triangle,
    "fade": _fade,
}


@dataclasses.dataclass(frozen=True)
class Term:
    """One consistency term: cross-entropy of a prediction against a labeler's pseudo-label, gated.

    Attributes:
      name: the term's name in metrics, such as "u_s1".
      stream: the stream predicted on, a key of `CUTMIX_PARTNER`.
      prediction: "s1" or "s2", the strong views (CutMix-ed, so is their label), or "fp", the
        feature-perturbed twin of the weak view.
      labeler: who labels the stream's weak view: "student", "bank" (its earlier snapshots), "ovs" or "dense_clip".
      pasted_labeler: who labels the CutMix partner's weak view.
      weight: the term's weight in the total.
      threshold: pixels labeled with less confidence contribute no loss.
      gate: how confidence decides, see `losses.gated_mean`.
      mean_over: the pixels that the loss is a mean over, "valid" ones or "all".
      schedule: a key of `SCHEDULES`.
      in_divisor: whether the total is divided by this term's weight, too.
    """

    name: str
    stream: str
    prediction: str
    labeler: str
    pasted_labeler: str
    weight: float
    threshold: float
    gate: GateMode = "pixelwise"
    mean_over: Pixels = "valid"
    schedule: str = "constant"
    in_divisor: bool = True

    def weight_at(self, at: Progress) -> jax.typing.ArrayLike:
        """The weight at a point of a run; 0 while the bank, if it labels, holds no snapshot."""
        weight = self.weight * SCHEDULES[self.schedule](at)
        return jnp.where(jnp.asarray(at.snapshots) > 0, weight, 0.0) if self.labeler == "bank" else weight


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its table of terms and what its labelers need.

    The total loss is the weighted mean of the supervised loss, of weight 1, and of the terms; terms that are not
    `in_divisor` are added to that mean.

    Attributes:
      name: the method's name.
      terms: the table; empty for supervised-only training.
      ovs_threshold: pixels that the OVS labeled with less confidence than this have confidence 0; 0 trusts all.
      bank_capacity: snapshots that the bank holds at most; 0 without a bank.
      bank_draws: snapshots that label a batch together at most.
    """

    name: str
    terms: tuple[Term, ...]
    ovs_threshold: float = 0.0
    bank_capacity: int = 0
    bank_draws: int = 0

    @property
    def reads_ovs_confidence(self) -> bool:
        """Whether the confidence of OVS labels decides anything; otherwise cached labels are read without it."""
        return self.ovs_threshold > 0

    @property
    def predicted_streams(self) -> tuple[str, ...]:
        """The streams with consistency terms, in the order of their forward passes."""
        return tuple(dict.fromkeys(term.stream for term in self.terms))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams a training batch must hold."""
        wanted = {"labeled", *self.predicted_streams, *(CUTMIX_PARTNER[s] for s in self.predicted_streams)}
        return tuple(s for s in ("labeled", "unlabeled", "mix", "ood") if s in wanted)

    @property
    def labeled_by(self) -> dict[str, tuple[str, ...]]:
        """The streams that each labeler has to label, by its name."""
        found: dict[str, dict[str, None]] = {}
        for term in self.terms:
            found.setdefault(term.labeler, {})[term.stream] = None
            found.setdefault(term.pasted_labeler, {})[CUTMIX_PARTNER[term.stream]] = None
        return {labeler: tuple(streams) for labeler, streams in found.items()}

    def threshold_of(self, labeler: str, stream: str) -> float:
        """The gate of a labeler's own labels of a stream."""
        return next(term.threshold for term in self.terms if (term.labeler, term.stream) == (labeler, stream))

    def weights(self, at: Progress) -> dict[str, jax.typing.ArrayLike]:
        """Weights of the terms at a point of a run, by name."""
        return {term.name: term.weight_at(at) for term in self.terms}


def _consistency(rule: Term) -> tuple[Term, ...]:
    """UniMatch's dual-stream and feature perturbations under one rule: half its weight on images, half on features."""
    shares = {"s1": 0.25, "s2": 0.25, "fp": 0.5}
    return tuple(
        dataclasses.replace(rule, name=f"u_{p}{rule.name}", prediction=p, weight=rule.weight * share)
        for p, share in shares.items()
    )


def make_method(config: ml_collections.ConfigDict) -> Method:
    """The method that `config.method` describes.

    Args:
      config: `config.method` with keys name (of `NAMES`), ood (of `OOD`), ood_weight (lambda of the paper),
        confidence_threshold and ovs_threshold; for "prevmatch" also bank (capacity, draws, confidence_threshold,
        gate), for "semivl" dense_clip (weight, confidence_threshold). With ood "unlabeled" the OOD images join the
        unlabeled stream and the table is that of "none".

    Raises:
      InputError: for a name, or a combination of names, that is no method, or a value out of its range.
    """
    _check(config)
    by_student = Term("", "unlabeled", "", "student", "student", weight=1.0, threshold=config.confidence_threshold)
    rules: list[Term] = []
    bank_capacity = bank_draws = 0
    if config.name != "supervised":
        rules.append(by_student)
    if config.name == "prevmatch":
        bank = config.bank
        bank_capacity, bank_draws = bank.capacity, min(bank.draws, bank.capacity)
        rules.append(
            Term(
                "_prev",
                "unlabeled",
                "",
                labeler="bank",
                pasted_labeler="bank",
                weight=1.0,
                threshold=bank.confidence_threshold,
                gate=bank.gate,
                schedule="triangle",
            )
        )
    if config.name == "semivl":
        rules.append(
            Term(
                "_mc",
                "unlabeled",
                "",
                labeler="dense_clip",
                pasted_labeler="dense_clip",
                weight=config.dense_clip.weight,
                threshold=config.dense_clip.confidence_threshold,
                mean_over="all",
                schedule="fade",
                in_divisor=False,
            )
        )
    if config.ood == "ovs":
        rules.append(
            dataclasses.replace(by_student, name="_ood", stream="ood", labeler="ovs", weight=config.ood_weight)
        )
    terms = tuple(term for rule in rules for term in _consistency(rule))
    return Method(config.name, terms, config.ovs_threshold, bank_capacity, bank_draws)


def _check(config: ml_collections.ConfigDict) -> None:
    if config.name not in NAMES or config.ood not in OOD or (config.name == "supervised" and config.ood != "none"):
        raise InputError(
            f"config.method: name={config.name!r} with ood={config.ood!r} is no method; choose name 'supervised' with "
            f"ood 'none', or a name of {', '.join(NAMES[1:])} with an ood of {', '.join(OOD)}"
        )
    thresholds = {"confidence_threshold": config.confidence_threshold, "ovs_threshold": config.ovs_threshold}
    if config.name == "prevmatch":
        thresholds["bank.confidence_threshold"] = config.bank.confidence_threshold
        _check_bank(config.bank)
    if config.name == "semivl":
        thresholds["dense_clip.confidence_threshold"] = config.dense_clip.confidence_threshold
    _check_thresholds(thresholds)


def _check_thresholds(thresholds: Mapping[str, float]) -> None:
    for key, value in thresholds.items():
        if not 0 <= value <= 1:
            raise InputError(f"config.method.{key}={value}: set it between 0 (trust all) and 1")


def _check_bank(config: ml_collections.ConfigDict) -> None:
    for key in ("capacity", "draws"):
        if config[key] < 1:
            raise InputError(f"config.method.bank.{key}={config[key]}: set it to 1 or more (the paper: 8 and 3)")
    if config.gate not in get_args(GateMode):
        raise InputError(f"config.method.bank.gate={config.gate!r}: choose one of {', '.join(get_args(GateMode))}")
