"""Runs beside each other."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from configs import demo
from data_pipelines.errors import InputError
from semiovs_jax import compare
from semiovs_jax.runtime.provenance import config_as_json


def write_run(
    folder: Path,
    mious: dict[int, float],
    digests: dict[str, str] | None = None,
    **changes: Any,
) -> str:
    """A workdir as a run leaves it, with evaluations as {step: mIoU}; `changes` by dotted key."""
    folder.mkdir(parents=True)
    config = demo.get_config().unlock()
    config.update_from_flattened_dict({"train.steps": 20} | changes)
    (folder / "config.json").write_text(json.dumps(config_as_json(config)))
    record = {"steps_per_epoch": 5, "digests": {"data.val_split": "v"} | (digests or {})}
    (folder / "run.json").write_text(json.dumps(record | {"forked_from": None, "starts": []}))
    lines = [{"event": "train", "step": step, "loss": 1 / step} for step in (5, 10, 15, 20)]
    lines += [
        {"event": "eval", "step": step, "miou": miou, "pixel_accuracy": miou + 0.1} for step, miou in mious.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def rows(text: str) -> dict[str, list[str]]:
    """Lines by their first word."""
    return {line.split()[0]: line.split() for line in text.splitlines() if line}


def test_a_table_of_scores_and_the_keys_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture):
    first = write_run(tmp_path / "a", {10: 0.4, 20: 0.3}, **{"method.name": "supervised", "method.ood": "none"})
    second = write_run(tmp_path / "b", {10: 0.5, 20: 0.625}, **{"optim.learning_rate": 0.5})
    compare.main([first, second])
    printed = capsys.readouterr()
    found = rows(printed.out)
    assert found[first][1:] == ["supervised", "20", "40.00", "10", "30.00", "20", "40.00"]
    assert found[second][1:] == ["unimatch,", "OOD", "ovs", "20", "62.50", "20", "62.50", "20", "72.50"]
    assert found["optim.learning_rate"][1:] == ["0.003", "0.5"]
    assert found["method.name"][1:] == ["'supervised'", "'unimatch'"]
    assert "seed" not in found
    assert "protocol: every validation image whole" in printed.out
    assert printed.out.splitlines()[-1].endswith(f"evaluate --workdir={second}")
    assert printed.err == ""


def test_runs_that_differ_in_the_seed_alone_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture):
    mious = (0.4, 0.5, 0.45)
    names = [
        write_run(tmp_path / str(seed), {10: 0.6, 20: miou}, seed=seed, **{"data.num_threads": 1 + seed})
        for seed, miou in enumerate(mious)
    ]
    other = write_run(tmp_path / "other", {20: 0.9}, seed=7, **{"method.ood": "none"})
    elsewhere = write_run(tmp_path / "elsewhere", {20: 0.9}, {"data.ood_root": "another digest"}, seed=8)
    compare.main([*names, other, elsewhere])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "±" in line)
    assert line.startswith(", ".join(names))
    spread = f"{100 * statistics.mean(mious):.2f} ± {100 * statistics.stdev(mious):.2f}"
    assert line.split("  ")[-1].strip() == spread
    assert line.split()[-7] == "3"
    assert "60.00 ± 0.00" in line


def test_moved_data_are_the_same_data(tmp_path: Path, capsys: pytest.CaptureFixture):
    digests = {f"data.{split}_split": split for split in ("labeled", "unlabeled", "val")}
    first = write_run(tmp_path / "a", {20: 0.4}, digests)
    second = write_run(tmp_path / "b", {20: 0.5}, digests, seed=1, **{"data.root": "elsewhere"})
    compare.main([first, second])
    printed = capsys.readouterr()
    assert "45.00 ± 7.07" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("digests", "changes", "message"),
    [
        ({}, {"eval.window": 64, "eval.stride": 32}, "evaluated by 2 protocols"),
        ({"data.val_split": "another"}, {}, "config.data.val_split differs"),
        ({}, {"data.dataset": "voc21"}, "config.data.dataset differs"),
        ({}, {"train.steps": 40}, "its last evaluation is at step 20 of 40"),
    ],
)
def test_scores_that_cannot_be_compared_are_a_warning(
    digests: dict[str, str], changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    first, second = write_run(tmp_path / "a", {20: 0.4}), write_run(tmp_path / "b", {20: 0.5}, digests, **changes)
    compare.main([first, second])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert message in line


def test_a_run_that_was_not_evaluated_yet_has_no_scores(tmp_path: Path, capsys: pytest.CaptureFixture):
    name = write_run(tmp_path / "a", {})
    compare.main([name, "--out", str(tmp_path / "curves.png")])
    printed = capsys.readouterr()
    assert rows(printed.out)[name][-5:] == ["-"] * 5
    assert "at step 0 of 20" in printed.err


def test_the_curves_of_many_runs_are_one_picture(tmp_path: Path):
    names = [
        write_run(tmp_path / f"run {i} $x", {10: 0.1, 20: 0.03 * i}, seed=i % 5, **{"batch_size": 8 + i // 5})
        for i in range(11)
    ]
    compare.main([*names, f"--out={tmp_path}/new/curves.png"])
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height


def test_folders_without_a_run_are_refused_all_at_once(tmp_path: Path):
    young = write_run(tmp_path / "young", {})
    (Path(young) / "metrics.jsonl").write_text("")
    with pytest.raises(InputError) as error:
        compare.main([str(tmp_path / "nowhere"), young])
    assert [fault.split(":")[0] for fault in error.value.args] == [
        str(tmp_path / name / "metrics.jsonl") for name in ("nowhere", "young")
    ]
    assert "missing or empty; pass the workdir of a run" in str(error.value)


def test_the_picture_is_a_png(tmp_path: Path):
    with pytest.raises(InputError, match=r"--out=curves.jpg: the picture is a PNG file; name it curves.png"):
        compare.main([write_run(tmp_path / "a", {20: 0.4}), "--out=curves.jpg"])
