"""What the names of metrics mean, in a few words."""

from semiovs_jax.methods.table import Method, Term

_PREDICTIONS = {"s1": "strong view 1", "s2": "strong view 2", "fp": "weak view with dropped channels"}
_STREAMS = {"unlabeled": "unlabeled images", "ood": "OOD images"}
_LOSSES = {"loss": "all terms by their weights", "loss_x": "labeled images"}
_RATIO = "mask_ratio"


def explain(name: str, method: Method | None) -> str:
    """The name of a metric of `train_step.scalars` and its meaning; the name alone if the method is unknown.

    Args:
      name: such as "passed_u_s1_ood".
      method: of the run.
    """
    meaning = _LOSSES.get(name) or _ratio(name, method)
    if method is not None and not meaning:
        terms = {term.name: term for term in method.terms}
        term = terms.get(name.removeprefix("loss_").removeprefix("passed_"))
        meaning = _term(term) if term else ""
    return f"{name}: {meaning}" if meaning else name


def _ratio(name: str, method: Method | None) -> str:
    if not name.startswith(_RATIO):
        return ""
    labeler = name.removeprefix(f"{_RATIO}_")
    if name == _RATIO:
        found = [term.labeler for term in method.terms if term.stream == "unlabeled"] if method else []
        labeler = found[0] if found else "the first labeler"
    return f"unlabeled images, labels of {labeler} that are confident enough"


def _term(term: Term) -> str:
    prediction, stream = _PREDICTIONS.get(term.prediction, term.prediction), _STREAMS.get(term.stream, term.stream)
    return f"{stream}, {prediction}, labels of {term.labeler}"
