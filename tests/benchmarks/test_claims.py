import pytest

from semiovs_jax.benchmarks import claims


def _runs(*values: float) -> list[dict[str, float]]:
    return [{"last": value, "best": value + 0.01, "seconds": 1.0} for value in values]


@pytest.mark.parametrize("ours", claims.CLAIMS)
def test_a_claim_needs_a_margin_beyond_the_spread(ours: str):
    others = {name: _runs(0.3, 0.32) for name in claims.ROWS}
    assert claims.claims_that_hold(others | {ours: _runs(0.5, 0.52)})[ours]
    assert not claims.claims_that_hold(others | {ours: _runs(0.2, 0.6)})[ours]
    assert not claims.claims_that_hold(others)[ours]


def test_every_claim_is_about_ovs_labels_alone():
    for ours, others in claims.CLAIMS.items():
        assert claims.ROWS[ours]["method.ood"] == "ovs"
        assert all(claims.ROWS[name]["method.ood"] != "ovs" for name in others)


@pytest.mark.parametrize("name", claims.ROWS)
def test_every_row_is_a_method_of_its_own(name: str):
    config = claims.row_config(claims.ROWS[name], seed=5)
    assert config.seed == 5
    assert config.is_locked
    assert (config.method.name == "supervised") == (name == "supervised")


def test_the_table_names_every_row():
    results = {name: _runs(0.25, 0.75) for name in claims.ROWS}
    text = claims.format_results(results)
    assert all(name in text for name in claims.ROWS)
    assert "50.00 ± 35.36" in text
