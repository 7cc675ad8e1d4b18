"""The table of a method: its consistency terms, and the data that its forward passes need.

The step (`semiovs_jax.train_step`) evaluates the table; it contains no code of any method.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from semiovs_jax.losses import GateMode, Pixels

STUDENT = "student"  # the labeler that is the trained network itself
OVS = "ovs"  # the labeler whose labels have confidence 1, or 0 below `Method.ovs_threshold`


class Progress(NamedTuple):
    """Training progress, on which the weights of terms depend.

    Attributes:
      step: int32 [], updates done.
      steps_per_epoch: updates in one pass over the unlabeled stream.
      total_steps: length of the run, in updates.
    """

    step: jax.typing.ArrayLike
    steps_per_epoch: int
    total_steps: int


Schedule = Callable[[Progress], Any]  # the factor of a term's weight


def constant(at: Progress) -> float:
    """1 throughout."""
    del at
    return 1.0


# Float masks [m, N, C] of m variants of N images, one array for each level of `channels` (key, N, channels).
ChannelMasks = Callable[[jax.Array, int, Sequence[int]], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What the terms of one row of a method have in common; `expand` makes the terms.

    Attributes:
      stream: the stream that is predicted.
      labeler: labels the stream's weak view: `STUDENT`, or a module of `semiovs_jax.labelers`.
      pasted_labeler: labels the weak view of the stream's CutMix partner; by default `labeler`.
      weight: in the total.
      threshold: pixels whose label has less confidence have no loss.
      gate: how the confidence counts, see `losses.gated_mean`.
      mean_over: the pixels in the loss's denominator: "valid" ones, or "all".
      schedule: factor of the weight in the course of a run.
      normalized: whether the weight is part of the total's denominator.
    """

    stream: str
    labeler: str
    pasted_labeler: str = ""
    weight: float = 1.0
    threshold: float
    gate: GateMode = "pixelwise"
    mean_over: Pixels = "valid"
    schedule: Schedule = constant
    normalized: bool = True

    def expand(self, shares: Mapping[str, float], suffix: str = "") -> tuple["Term", ...]:
        """One term a prediction, which gets its share of the weight.

        Args:
          shares: shares of the weight by prediction.
          suffix: end of the terms' names: "u_<prediction><suffix>".
        """
        common = vars(self) | {"pasted_labeler": self.pasted_labeler or self.labeler}
        return tuple(
            Term(
                **common | {"name": f"u_{prediction}{suffix}", "prediction": prediction, "weight": self.weight * share}
            )
            for prediction, share in shares.items()
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term(Rule):
    """One consistency term: cross-entropy of a prediction against a labeler's pseudo-label, above a threshold.

    Attributes:
      name: the term's name in metrics.
      prediction: "s1" or "s2", the strong views (their images and labels are CutMix-ed), or "fp", the
        feature-perturbed weak view.
    """

    name: str
    prediction: str

    @property
    def mixed(self) -> bool:
        """Whether its images and labels are CutMix-ed."""
        return self.prediction in ("s1", "s2")

    def weight_at(self, at: Progress) -> jax.typing.ArrayLike:
        """The weight at a point of a run."""
        return self.weight * self.schedule(at)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its table of terms, its CutMix partners and its channel masks.

    The total loss is the weighted mean of the supervised loss, of weight 1, and of the `normalized` terms; the other
    terms are added to that mean.

    Attributes:
      name: the method's name.
      terms: the table; empty for supervised training.
      partners: by stream, the stream whose strong views and labels CutMix pastes. A stream that is its own partner is
        pasted in reversed order of the batch.
      weak_masks: channel masks of the joint forward pass over labeled and weak views: variant 0 is the clean
        prediction, variant 1 is "fp". None: one clean pass.
      strong_masks: channel masks of one variant for the strong views of a stream, interleaved: s1 and s2 of the first
        image, of the second, and so on. None: no masks.
      evaluates: whose weights are evaluated: `STUDENT`, or a labeler with weights of the student's structure.
      ovs_threshold: pixels that the OVS labeled with less confidence have confidence 0; 0 accepts all.
    """

    name: str
    terms: tuple[Term, ...] = ()
    partners: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weak_masks: ChannelMasks | None = None
    strong_masks: ChannelMasks | None = None
    evaluates: str = STUDENT
    ovs_threshold: float = 0.0

    @property
    def reads_ovs_confidence(self) -> bool:
        """Whether the confidence of OVS labels has an effect; otherwise cached labels are read without it."""
        return self.ovs_threshold > 0

    @property
    def predicted_streams(self) -> tuple[str, ...]:
        """The streams with consistency terms, in the order of their forward passes."""
        return tuple(dict.fromkeys(term.stream for term in self.terms))

    @property
    def weak_streams(self) -> tuple[str, ...]:
        """The streams whose weak views the student predicts in train mode, jointly with the labeled images."""
        wanted = {*self.perturbed_streams, *self.labeled_by.get(STUDENT, ())}
        return tuple(stream for stream in self.predicted_streams if stream in wanted)

    @property
    def perturbed_streams(self) -> tuple[str, ...]:
        """The streams with terms on the feature-perturbed weak view."""
        return tuple(dict.fromkeys(term.stream for term in self.terms if term.prediction == "fp"))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that a training batch must have."""
        wanted = {"labeled", *self.predicted_streams, *(self.partners[s] for s in self.predicted_streams)}
        return tuple(s for s in ("labeled", "unlabeled", "mix", "ood") if s in wanted)

    @property
    def labeled_by(self) -> dict[str, tuple[str, ...]]:
        """The streams that each labeler labels, by its name."""
        found: dict[str, dict[str, None]] = {}
        for term in self.terms:
            found.setdefault(term.labeler, {})[term.stream] = None
            found.setdefault(term.pasted_labeler, {})[self.partners[term.stream]] = None
        return {labeler: tuple(streams) for labeler, streams in found.items()}

    @property
    def labelers(self) -> tuple[str, ...]:
        """The labelers but the student, in the order of the table."""
        return tuple(name for name in self.labeled_by if name != STUDENT)

    def threshold_of(self, labeler: str, stream: str) -> float:
        """The threshold for a labeler's own labels of a stream."""
        return next(term.threshold for term in self.terms if (term.labeler, term.stream) == (labeler, stream))

    def least_confidence(self, term: Term, labeler: str) -> float:
        """The confidence, as the labeler gives it, from which its label of a pixel causes a loss in a term.

        0: every pixel does. Labels of the OVS pass each threshold of a term but for `ovs_threshold`.

        Args:
          term: the term.
          labeler: its labeler, or its pasted labeler.
        """
        if labeler == OVS and term.threshold > 0:
            return self.ovs_threshold
        return term.threshold

    def weights(self, at: Progress, ready: Mapping[str, jax.typing.ArrayLike]) -> dict[str, jax.typing.ArrayLike]:
        """Weights of the terms at a point of a run, by name.

        Args:
          at: the point.
          ready: by labeler, whether it has labels yet, bool []; those left out have. Without labels, a weight is 0.
        """

        def weight(term: Term) -> jax.typing.ArrayLike:
            value, has_labels = term.weight_at(at), ready.get(term.labeler, True)
            return value if has_labels is True else jnp.where(has_labels, value, 0.0)

        return {term.name: weight(term) for term in self.terms}
