"""Methods as tables: a method is the consistency terms it adds to the supervised loss.

Sources: UniMatch (arXiv 2208.09910, eq. 4-8); SemiOVS (arXiv 2507.03302, section 3.3) and its reference trainer
`semiovs/semiovs_unimatch.py`.
"""

import dataclasses

import ml_collections

from data_pipelines.errors import InputError

# Whose strong views, and whose labels, are pasted into a stream's strong views by CutMix.
CUTMIX_PARTNER = {"unlabeled": "mix", "ood": "unlabeled"}


@dataclasses.dataclass(frozen=True)
class Term:
    """One consistency term: cross-entropy of a prediction against a labeler's pseudo-label, gated.

    Attributes:
      name: the term's name in metrics, such as "u_s1".
      stream: the stream predicted on, a key of `CUTMIX_PARTNER`.
      prediction: "s1" or "s2", the strong views (CutMix-ed, so is their label), or "fp", the
        feature-perturbed twin of the weak view.
      labeler: who labels the stream's weak view, "student" or "ovs".
      weight: the term's weight in the total.
      pasted_labeler: who labels the CutMix partner's weak view.
    """

    name: str
    stream: str
    prediction: str
    labeler: str
    weight: float
    pasted_labeler: str = "student"


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its terms and the confidence thresholds of their gates.

    The total loss is the weighted mean of the supervised loss, of weight 1, and of the terms.

    Attributes:
      name: the method's name.
      terms: the table; empty for supervised-only training.
      confidence_threshold: pixels labeled with less confidence contribute no loss. OVS labels have confidence 1.
      ovs_threshold: pixels that the OVS labeled with less confidence than this have confidence 0; 0 trusts all.
    """

    name: str
    terms: tuple[Term, ...]
    confidence_threshold: float
    ovs_threshold: float = 0.0

    @property
    def total_weight(self) -> float:
        """Sum of all weights, the supervised one included; the divisor of the total loss."""
        return 1.0 + sum(term.weight for term in self.terms)

    @property
    def predicted_streams(self) -> tuple[str, ...]:
        """The streams with consistency terms, in the order of their forward passes."""
        return tuple(dict.fromkeys(term.stream for term in self.terms))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams a training batch must hold."""
        wanted = {"labeled", *self.predicted_streams, *(CUTMIX_PARTNER[s] for s in self.predicted_streams)}
        return tuple(s for s in ("labeled", "unlabeled", "mix", "ood") if s in wanted)


def _consistency(stream: str, labeler: str, suffix: str, weight: float) -> tuple[Term, ...]:
    """UniMatch's dual-stream and feature perturbations: half the weight on images, half on features."""
    shares = {"s1": 0.25, "s2": 0.25, "fp": 0.5}
    return tuple(Term(f"u_{p}{suffix}", stream, p, labeler, weight * share) for p, share in shares.items())


def make_method(config: ml_collections.ConfigDict) -> Method:
    """The method that `config.method` describes.

    Args:
      config: `config.method` with keys name ("supervised" or "unimatch"), ood ("none", "unlabeled" or "ovs"),
        ood_weight (lambda of the paper), confidence_threshold and ovs_threshold. With ood "unlabeled" the OOD
        images join the unlabeled stream and the table is plain UniMatch's.

    Raises:
      InputError: for a name, or a combination of names, that is no method, or a threshold that is no probability.
    """
    if not 0 <= config.ovs_threshold <= 1:
        raise InputError(f"config.method.ovs_threshold={config.ovs_threshold}: set it between 0 (off, the paper) and 1")
    match config.name, config.ood:
        case "supervised", "none":
            terms: tuple[Term, ...] = ()
        case "unimatch", "none" | "unlabeled":
            terms = _consistency("unlabeled", "student", "", 1.0)
        case "unimatch", "ovs":
            terms = _consistency("unlabeled", "student", "", 1.0)
            terms += _consistency("ood", "ovs", "_ood", config.ood_weight)
        case name, ood:
            raise InputError(
                f"config.method: name={name!r} with ood={ood!r} is no method; choose name 'supervised' with ood "
                "'none', or name 'unimatch' with ood 'none', 'unlabeled' or 'ovs'"
            )
    return Method(config.name, terms, config.confidence_threshold, config.ovs_threshold)
