import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.methods import make_method


def _method(name: str, ood: str, weight: float = 1.0, ovs_threshold: float = 0.0):
    config = {"name": name, "ood": ood, "ood_weight": weight, "confidence_threshold": 0.95}
    return make_method(ConfigDict(config | {"ovs_threshold": ovs_threshold}))


def test_supervised_has_no_terms():
    method = _method("supervised", "none")
    assert method.terms == ()
    assert method.streams == ("labeled",)
    assert method.total_weight == 1.0


def test_unimatch_weighs_supervised_and_consistency_alike():
    method = _method("unimatch", "none")
    assert {term.prediction: term.weight for term in method.terms} == {"s1": 0.25, "s2": 0.25, "fp": 0.5}
    assert method.streams == ("labeled", "unlabeled", "mix")
    assert method.total_weight == 2.0


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_ovs_adds_lambda_to_the_normalizer(weight: float):
    method = _method("unimatch", "ovs", weight)
    assert method.streams == ("labeled", "unlabeled", "mix", "ood")
    assert method.total_weight == pytest.approx(2.0 + weight)
    assert {term.labeler for term in method.terms if term.stream == "ood"} == {"ovs"}
    assert {term.pasted_labeler for term in method.terms} == {"student"}


def test_ood_as_unlabeled_changes_no_term():
    assert _method("unimatch", "unlabeled").terms == _method("unimatch", "none").terms


@pytest.mark.parametrize(("name", "ood"), [("supervised", "ovs"), ("fixmatch", "none"), ("unimatch", "sed")])
def test_unknown_combinations_are_refused_with_the_choices(name: str, ood: str):
    with pytest.raises(InputError, match=r"is no method; choose name 'supervised'"):
        _method(name, ood)


def test_an_ovs_threshold_that_is_no_probability_is_refused():
    assert _method("unimatch", "ovs", ovs_threshold=0.5).ovs_threshold == 0.5
    with pytest.raises(InputError, match=r"config\.method\.ovs_threshold=1\.5"):
        _method("unimatch", "ovs", ovs_threshold=1.5)
