import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.benchmarks.ceiling import best_rate, jax_ceiling
from semiovs_jax.benchmarks.step import __main__ as step
from semiovs_jax.benchmarks.step import cases as step_cases
from semiovs_jax.benchmarks.step import table as step_table
from semiovs_jax.benchmarks.step import weights as step_weights
from semiovs_jax.benchmarks.step.cases import OURS, Case
from semiovs_jax.benchmarks.step.ours import OurStep
from semiovs_jax.benchmarks.turns import WorkerError
from semiovs_jax.runtime.flops import count_flops

TINY = Case("supervised", ood=False, backbone="resnet_tiny", crop_size=17, batch_size=2, precision="float32")
ARGUMENTS = SimpleNamespace(
    rounds=2,
    steps=1,
    update_only=False,
    trace=None,
    methods=None,
    ood=None,
    backbones=None,
    crop_sizes=None,
    batch_sizes=None,
    precisions=None,
    remats=None,
    torch_forms=None,
    only=None,
)


def _usage(seconds: float, core_seconds: float = 1.0) -> dict[str, float]:
    return {"batches": 2, "seconds": seconds, "core_seconds": core_seconds}


def _row(case: Case = TINY) -> dict:
    """Our updates take 1 s and 3 s, PyTorch's 2 s; torch.compile's are slower."""
    ours = [{"step": _usage(4.0), "update": _usage(2.0)}, {"step": _usage(8.0), "update": _usage(6.0)}]
    memory = {"baseline_bytes": 1e9, "built_bytes": 2e9, "peak_bytes": 4e9, "device_bytes": None}
    prepared = {"loss": 2.0, "compile_seconds": 7.0}
    return {
        "case": dataclasses.asdict(case),
        "date": "2026-01-01",
        "images": 6,
        "prepared": {OURS: prepared | {"flops": 3e9}, "torch": prepared | {"loss": 2.5}, "torch.compile": prepared},
        "rounds": {OURS: ours, "torch": [{"update": _usage(4.0)}] * 2, "torch.compile": [{"update": _usage(9.0)}] * 2},
        "finished": {
            OURS: memory | {"ceiling": 1e9},
            "torch": memory | {"peak_bytes": 2e9, "ceiling": 3e9},
            "torch.compile": memory | {"ceiling": 2e9},
        },
    }


def test_ratios_are_those_of_each_round_with_the_faster_form():
    row = _row()
    assert step_table.rival(row) == "torch"
    assert step_table.ratios(row, "update") == [0.5, 1.5]
    assert step_table.ratios(row, "step") == [1.0, 2.0]
    assert step_table.ratios(row, "step", "core_seconds") == [1.0, 1.0]


def test_the_table_has_medians_ratios_rates_memory_and_mfu():
    header, line = (re.split(" {2,}", text.strip()) for text in step_table.format_table([_row()]).splitlines())
    assert dict(zip(header, line, strict=True)) == {
        "case": "supervised resnet_tiny 17px b2 float32",
        "ms update": "2,000",
        "step": "3,000",
        "PyTorch": "2,000",
        "update ratio": "1.00 (0.50 to 1.50)",
        "step ratio": "1.50 (1.00 to 2.00)",
        "update core ratio": "1.00 (1.00 to 1.00)",
        "step core ratio": "1.00 (1.00 to 1.00)",
        "images/s": "2.0 / 3.0",
        "host GB": "3.00 / 1.00",  # above the imports
        "device GB": "- / -",
        "compile s": "7.0 / 7.0",
        "MFU % step / update / PyTorch": "33.3 / 50.0 / 50.0",  # of the faster product, 3 GFLOP/s
        "d loss": "2e-01",
    }


@pytest.mark.parametrize("side", [OURS, "torch"])
def test_one_side_alone_has_a_line(side: str):
    row = _row()
    for key in ("prepared", "rounds", "finished"):
        row[key] = {side: row[key][side]}
    assert "-" in step_table.format_table([row])


def test_rows_are_kept_in_the_file_and_measured_once(tmp_path, monkeypatch):
    measured, path, environment = [], tmp_path / "rows.json", {"platform": "cpu"}
    other = dataclasses.replace(TINY, crop_size=33)

    def measure_case(case, sides, device, rounds, steps, **options):
        measured.append(case)
        if case == other and len(measured) == 2:
            raise WorkerError("killed")
        return _row(case)

    monkeypatch.setattr(step, "measure_case", measure_case)
    results = step.Results.open(path, environment)
    assert step.measure(results, [TINY, other], [OURS, "torch"], ARGUMENTS) == [other]
    again = step.Results.open(path, environment)
    assert step.measure(again, [TINY, other], [OURS, "torch"], ARGUMENTS) == []
    assert measured == [TINY, other, other]
    assert [row["case"]["crop_size"] for row in json.loads(path.read_text())["rows"]] == [17, 33]
    assert not again.has(TINY, ["another form"])
    with pytest.raises(InputError, match="another file"):
        step.Results.open(path, {"platform": "gpu"})


def test_losses_may_differ_by_rounding_alone():
    rounded = {OURS: 2.0, "torch": 2.0001}
    step.check_losses(rounded, TINY)
    step.check_losses({OURS: 2.0, "torch": 2.05}, dataclasses.replace(TINY, precision="bfloat16"))
    with pytest.raises(step.LossError, match=r"2\.05"):
        step.check_losses({OURS: 2.0, "torch": 2.05}, TINY)
    with pytest.raises(step.LossError):
        step.check_losses({OURS: float("nan"), "torch": float("nan")}, TINY)


def test_the_cases_of_a_platform_are_those_that_are_left_out():
    choice, sides = step.choose("gpu", ARGUMENTS)
    names = [str(case) for case in choice.cases()]
    assert len(names) == len(set(names)) == (1 + 2 + 2 + 2) * 2 * 3
    assert "semivl+ood clip_vit_b16 321px b16 tf32" in names
    assert sides == [OURS, "torch", "torch.compile"]
    few = SimpleNamespace(**vars(ARGUMENTS) | {"methods": ["unimatch"], "ood": ["ovs"], "crop_sizes": ["161"]})
    few.only = "ours"
    choice, sides = step.choose("cpu", few)
    assert [str(case) for case in choice.cases()] == [
        f"unimatch+ood {backbone} 161px b2 float32" for backbone in ("resnet50", "resnet101")
    ]
    assert sides == [OURS]


@pytest.mark.slow
def test_a_case_of_ours_is_measured_in_its_own_process():
    row = step.measure_case(TINY, [OURS], "cpu", rounds=2, steps=1)
    assert json.loads(json.dumps(row)) == row
    assert row["images"] == 2
    assert [list(found) for found in row["rounds"][OURS]] == [["update", "step"]] * 2
    assert row["prepared"][OURS]["flops"] > 0
    assert np.isfinite(row["prepared"][OURS]["loss"])
    memory = row["finished"][OURS]
    assert 0 < memory["baseline_bytes"] < memory["built_bytes"]
    assert memory["peak_bytes"] > memory["baseline_bytes"]
    assert "supervised" in step_table.format_table([row])


@pytest.mark.slow
def test_what_is_computed_again_does_not_count_as_flops():
    ours = OurStep(dataclasses.replace(TINY, remat="full"))
    again = count_flops(functools.partial(ours._update_alone, ours._spec), ours._state, *ours._given())
    assert OurStep(TINY).flops() == ours.flops() < again


@pytest.mark.slow
def test_the_views_of_prevmatch_have_ovs_labels_and_a_draw():
    ours = OurStep(dataclasses.replace(TINY, method="prevmatch", ood=True))
    views = ours.flat_views()
    assert views["weak/ood"].shape == views["s2/mix"].shape == (2, 17, 17, 3)
    assert views["ovs/label"].dtype == np.uint8
    np.testing.assert_array_equal(views["snapshots/weights"], [0.5, 0.5])
    state, loss = jax.eval_shape(functools.partial(ours._update_alone, ours._spec), ours._state, *ours._given())
    assert loss.shape == ()
    assert set(state.labelers) == {"snapshots"}
    weights = ours._spec.term_weights(ours._state)
    assert all(float(weight) > 0 for weight in weights.values())


@pytest.mark.slow
def test_semivl_needs_no_weight_file():
    case = Case("semivl", ood=False, backbone="clip_vit_shapes", crop_size=32, batch_size=2, precision="bfloat16")
    ours = OurStep(case)
    given = ours._batch, ours._frozen
    views, _ = jax.eval_shape(ours._make_views, *given)
    _, loss = jax.eval_shape(functools.partial(ours._update_alone, ours._spec), ours._state, *given, views, None)
    assert loss.dtype == np.float32


class _Tensor:
    def __init__(self, *values: float):
        self._values = np.float32(values)

    def detach(self) -> "_Tensor":
        return self

    def cpu(self) -> "_Tensor":
        return self

    def numpy(self) -> np.ndarray:
        return self._values

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._values


def test_weights_pass_through_a_file(tmp_path):
    words = {"text": _Tensor(4), "concepts": _Tensor(5, 6), "concepts_per_class": (2, 1)}
    theirs = SimpleNamespace(
        student=SimpleNamespace(**words),
        state_dict=lambda: {"a.b": _Tensor(1)},
        snapshot_state_dicts=lambda: [{"a.b": _Tensor(2)}, {"a.b": _Tensor(3)}],
    )
    step_weights.write_weights(tmp_path / "weights.npz", theirs)
    found = step_weights.read_weights(tmp_path / "weights.npz")
    assert found.student == {"a.b": 1}
    assert found.snapshots == [{"a.b": 2}, {"a.b": 3}]
    assert found.words.concepts.tolist() == [5, 6]
    assert found.words.concepts_per_class == [2, 1]


def test_every_case_has_a_config():
    for platform, choice in step_cases.DEFAULTS.items():
        for case in choice.cases():
            config = step_cases.case_config(case)
            assert config.model.backbone == case.backbone, platform
            assert config.batch_size == case.batch_size


def test_the_fastest_product_is_the_ceiling():
    calls = []
    assert best_rate(lambda: calls.append(1), side=10, repeats=3) > 0
    assert len(calls) == 4
    assert jax_ceiling("float32", "highest", side=8) > 0


def test_a_side_that_cannot_be_profiled_costs_no_row(tmp_path, capsys):
    class Side:
        def call(self, name: str, folder: str) -> None:
            if folder.endswith("torch"):
                raise WorkerError("no profiler")
            written.append((name, folder))

    written: list[tuple[str, str]] = []
    step._write_traces({"torch": Side(), OURS: Side()}, tmp_path)
    assert written == [("trace", str(tmp_path / OURS))]
    assert capsys.readouterr().err == "no profile: no profiler\n"
