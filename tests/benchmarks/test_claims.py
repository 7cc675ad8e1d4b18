import dataclasses
import itertools
from pathlib import Path
from unittest import mock

import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from data_pipelines.shapes.benchmark import ShapesSpec, write_shapes
from semiovs_jax.benchmarks.claims import __main__ as claims
from semiovs_jax.benchmarks.claims import judge, rows
from semiovs_jax.benchmarks.claims.picture import draw_claims


def _runs(*values: float) -> list[dict[str, float]]:
    return [{"seed": seed, "last": value, "best": value + 0.01, "seconds": 1.0} for seed, value in enumerate(values)]


def _rising() -> dict[str, list[dict[str, float]]]:
    """Runs by which each claim holds: OVS labels above unlabeled images above labels alone, and more gain with less."""
    results = {}
    for name, row in rows.ROWS.items():
        ovs = row.changes["method.ood"] == "ovs"
        score = 0.3 + 0.05 * (row.changes.get("method.name") != "supervised")
        score += 0.001 * row.labeled + 0.00001 * row.ood
        score += ovs * (0.2 - 0.002 * row.labeled - 0.1 * (row.changes.get("ovs.name") == "maskclip"))
        results[name] = _runs(score, score + 0.0001)
    return results


@pytest.mark.parametrize("claim", judge.CLAIMS, ids=lambda claim: claim.text)
def test_a_claim_is_judged_by_its_rows(claim: judge.Claim):
    held = _rising()
    assert judge.judge(held)[claim.text]
    if claim.holds is judge.level:
        broken = held | {claim.rows[0]: _runs(0.1, 0.1001)}
    else:
        broken = held | dict.fromkeys(claim.rows, _runs(0.3, 0.32))
    assert not judge.judge(broken)[claim.text]
    assert claim.text not in judge.judge(held | {claim.rows[0]: []})  # a row that has not run


def test_an_unfinished_row_is_compared_on_the_seeds_it_has():
    ours, base, _ = judge.CLAIMS[1].rows
    hard = _rising() | {ours: _runs(0.8, 0.1), base: _runs(0.5)}
    assert judge.judge(hard)[judge.CLAIMS[1].text]
    assert not judge.judge(hard | {base: _runs(0.5, 0.5)})[judge.CLAIMS[1].text]


def test_a_claim_needs_a_margin_beyond_the_spread():
    other = _runs(0.3, 0.32)
    assert judge.above(_runs(0.5, 0.52), other)
    assert not judge.above(_runs(0.2, 0.6), other)
    assert judge.level(_runs(0.2, 0.6), other)
    assert not judge.level(_runs(0.5, 0.52), other)


@pytest.mark.parametrize("name", rows.ROWS)
def test_every_row_resolves(name: str):
    row = rows.ROWS[name]
    config = rows.row_config(row, seed=5)
    assert config.seed == 5
    assert config.is_locked
    assert (config.method.name == "supervised") == name.startswith("supervised")
    assert config.data.labeled_split == f"splits/labeled_{row.labeled}.txt"


def test_rows_that_are_compared_differ_in_one_thing():
    for pair in itertools.pairwise(rows.with_ood(count) for count in rows.OOD):
        assert len({rows.ROWS[name].ood for name in pair}) == 2
        assert len({tuple(rows.ROWS[name].changes.items()) for name in pair}) == 1
    for count in rows.LABELED:
        assert {rows.ROWS[rows.with_labels(name, count)].labeled for name in ("UniMatch", rows.OURS)} == {count}


def test_the_lists_are_those_of_the_demo_and_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = ShapesSpec(labeled=8, unlabeled=32, val=2, ood=3)
    write_shapes(tmp_path / "demo", small)
    monkeypatch.setattr(rows, "_ROOT", tmp_path / "claims")
    monkeypatch.setattr(rows, "_SPEC", dataclasses.replace(small, labeled=16, unlabeled=24, ood=5))
    monkeypatch.setattr(rows, "LABELED", (8, 16))
    monkeypatch.setattr(rows, "OOD", (3, 5))
    rows.write_data()
    for name, count in (("labeled", 8), ("unlabeled", 8)):
        demo = (tmp_path / "demo" / "splits" / f"{name}.txt").read_text()
        assert (tmp_path / "claims" / "splits" / f"{name}_{count}.txt").read_text() == demo
    images = (tmp_path / "claims" / "splits" / "ood_3.txt").read_text().split()
    assert images == sorted(path.name for path in (tmp_path / "demo" / "ood" / "JPEGImages").iterdir())


def test_runs_of_other_machines_are_taken_over_if_what_was_trained_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started = []

    def run_row(name: str, config: ConfigDict, workdir: Path) -> judge.Run:
        started.append((name, config.seed))
        score = {"last": 0.5, "best": 0.6, "seconds": 1.0}
        return {"seed": config.seed, **score, "fingerprint": rows.fingerprint(config)}

    monkeypatch.setattr(claims, "run_row", run_row)
    monkeypatch.setattr(claims, "write_data", lambda: None)
    of_labels = [name for name, row in rows.ROWS.items() if row.group == "labels"]
    results = claims.run_rows(tmp_path / "one", 1, ["labels"], {})
    assert started == [(name, 0) for name in of_labels]

    started.clear()
    known = claims.read_runs([tmp_path / "one" / "claims.json"])
    assert claims.run_rows(tmp_path / "two", 2, ["labels"], known)[of_labels[0]][0] == results[of_labels[0]][0]
    assert started == [(name, 1) for name in of_labels]

    of_methods = run_row("supervised", rows.row_config(rows.ROWS["supervised"], 0), tmp_path)
    stops = mock.patch.object(claims, "run_row", side_effect=[of_methods, KeyboardInterrupt])
    with stops, pytest.raises(KeyboardInterrupt):
        claims.run_rows(tmp_path / "stopped", 1, ["methods"], known)
    assert claims.read_runs([tmp_path / "stopped" / "claims.json"]).keys() > known.keys()

    started.clear()
    changed = dataclasses.replace(rows.ROWS[of_labels[0]], labeled=8)
    monkeypatch.setitem(rows.ROWS, of_labels[0], changed)
    claims.run_rows(tmp_path / "three", 1, ["labels"], known)
    assert started == [(of_labels[0], 0)]


def test_a_file_that_holds_no_runs_is_refused(tmp_path: Path):
    (tmp_path / "claims.json").write_text("[]")
    for path in (tmp_path / "claims.json", tmp_path / "none.json"):
        with pytest.raises(InputError, match=f"{path}: not a claims.json of this command"):
            claims.read_runs([path])


def test_the_table_and_the_picture_show_the_rows_that_have_run(tmp_path: Path):
    results = {name: _runs(0.25, 0.75) for name in rows.ROWS} | {"PrevMatch": []}
    text = judge.format_results(results)
    assert all((name in text) == bool(runs) for name, runs in results.items() if name != "PrevMatch")
    assert "\nPrevMatch " not in text
    assert "50.00 ± 35.36" in text
    draw_claims(results, tmp_path / "claims.png")
    assert (tmp_path / "claims.png").stat().st_size > 10_000
