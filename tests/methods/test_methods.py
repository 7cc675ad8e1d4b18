import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from data_pipelines.errors import InputError
from semiovs_jax import labelers, methods
from semiovs_jax.labelers.ovs import binarize_confidence
from semiovs_jax.methods import Method, Progress, make_method
from semiovs_jax.ovs.base import PseudoLabel
from semiovs_jax.train_step import Predictions, evaluate_terms
from semiovs_jax.views import Views


def _method(name: str, ood: str = "none", **changes) -> Method:
    config = common.semiovs_unimatch().method
    config.update_from_flattened_dict({"name": name, "ood": ood, **changes})
    return make_method(config)


def _at(step: int) -> Progress:
    return Progress(jnp.int32(step), steps_per_epoch=10, total_steps=100)


def test_supervised_has_no_terms():
    method = _method("supervised")
    assert method.terms == ()
    assert method.streams == ("labeled",)
    assert method.labeled_by == {}


def test_unimatch_weighs_supervised_and_consistency_alike():
    method = _method("unimatch")
    assert {term.prediction: term.weight for term in method.terms} == {"s1": 0.25, "s2": 0.25, "fp": 0.5}
    assert method.streams == ("labeled", "unlabeled", "mix")
    assert sum(method.weights(_at(0), {}).values()) == 1.0
    assert method.labeled_by == {"student": ("unlabeled", "mix")}


@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("name", ["unimatch", "prevmatch", "semivl"])
def test_ovs_adds_lambda_to_the_normalizer(name: str, weight: float):
    method, alone = _method(name, "ovs", ood_weight=weight), _method(name)
    assert method.streams == ("labeled", "unlabeled", "mix", "ood")
    ood = [term for term in method.terms if term.stream == "ood"]
    assert sum(term.weight for term in ood) == pytest.approx(weight)
    assert {(term.labeler, term.pasted_labeler, term.normalized) for term in ood} == {("ovs", "student", True)}
    assert tuple(term for term in method.terms if term.stream != "ood") == alone.terms


@pytest.mark.parametrize("name", ["unimatch", "prevmatch", "semivl"])
def test_ood_as_unlabeled_changes_no_term(name: str):
    assert _method(name, "unlabeled").terms == _method(name).terms


def test_snapshots_count_as_much_as_the_epoch_says_once_there_are_some():
    method = _method("prevmatch")
    previous = [term for term in method.terms if term.labeler == "snapshots"]
    assert {term.pasted_labeler for term in previous} == {"snapshots"}
    assert {term.threshold for term in previous} == {0.9}

    def mu(step: int, snapshots: int) -> float:
        weights = method.weights(_at(step), {"snapshots": jnp.int32(snapshots) > 0})
        return sum(float(weights[term.name]) for term in previous)

    assert [mu(step, 2) for step in (0, 9, 10, 50, 99)] == pytest.approx([0, 0, 0.2, 1, 0.2])
    assert mu(50, 0) == 0


def test_maskclip_fades_beside_the_mean():
    method = _method("semivl")
    dense = [term for term in method.terms if term.labeler == "maskclip"]
    assert {(term.mean_over, term.normalized, term.threshold) for term in dense} == {("all", False, 0.9)}
    for step, weight in ((0, 0.1), (50, 0.05), (100, 0.0)):
        assert sum(float(method.weights(_at(step), {})[term.name]) for term in dense) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("name", "ood", "message"),
    [
        ("supervised", "ovs", "config.method.ood='ovs': supervised has no .*; choose one of none$"),
        ("fixmatch", "none", "config.method.name='fixmatch': no such method; choose one of prevmatch, semivl, superv"),
        ("unimatch", "sed", "config.method.ood='sed': unimatch has no .*; choose one of none, unlabeled, ovs$"),
    ],
)
def test_unknown_combinations_are_refused_with_the_choices(name: str, ood: str, message: str):
    with pytest.raises(InputError, match=message):
        _method(name, ood)


def test_all_unknown_names_are_told_at_once():
    with pytest.raises(InputError) as caught:
        _method("prevmatch", "sed", **{"snapshots.gate": "x"})
    assert [fault.split("=")[0] for fault in caught.value.args] == [
        "config.method.snapshots.gate",
        "config.method.ood",
    ]


def test_labelers_of_all_methods_are_modules_of_their_name():
    for name in methods.names():
        method = _method(name, "none" if name == "supervised" else "ovs")
        assert set(labelers._modules(method)) == set(method.labelers)
        assert method.name == name


def test_an_unknown_gate_is_refused():
    with pytest.raises(InputError, match=r"config\.method\.snapshots\.gate='pixelmax'"):
        _method("prevmatch", **{"snapshots.gate": "pixelmax"})


@pytest.mark.parametrize("threshold", [0.0, 0.95])
@pytest.mark.parametrize("ovs_threshold", [0.0, 0.7])
def test_the_least_confidence_of_a_term_is_what_the_step_asks_for(ovs_threshold: float, threshold: float):
    method = _method("unimatch", "ovs", ovs_threshold=ovs_threshold, confidence_threshold=threshold)
    shape, rng = (2, 8, 8), np.random.default_rng(0)
    confidence = {name: rng.uniform(size=shape).astype(np.float32) for name in ("unlabeled", "mix", "ood")}
    label = {
        name: PseudoLabel(jnp.zeros(shape, jnp.int32), jnp.asarray(plane), jnp.ones(shape, bool))
        for name, plane in confidence.items()
    }
    labels = {("student", name): label[name] for name in ("unlabeled", "mix")}
    labels["ovs", "ood"] = binarize_confidence(label["ood"], ignore_index=255, threshold=ovs_threshold)
    boxes = np.zeros(shape, bool)
    boxes[:, :4, :5] = True
    views = Views({}, {}, {}, {}, jnp.zeros(shape, jnp.int32), box1=jnp.asarray(boxes), box2=jnp.asarray(~boxes))
    logits = {"unlabeled": jnp.zeros((*shape, 3)), "ood": jnp.zeros((*shape, 3))}
    predictions = Predictions(logits["ood"], fp=logits, s1=logits, s2=logits)
    values = evaluate_terms(method, views, predictions, labels)
    for term in method.terms:
        pasted = {"s1": boxes, "s2": ~boxes}.get(term.prediction, np.zeros(shape, bool))
        assert pasted.any() == term.mixed
        own = confidence[term.stream] >= method.least_confidence(term, term.labeler)
        partner = confidence[method.partners[term.stream]] >= method.least_confidence(term, term.pasted_labeler)
        assert int(values[term.name].passed) == np.where(pasted, partner, own).sum(), term.name
