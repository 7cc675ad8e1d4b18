"""What the evaluation of a run tells: its table, its files and its page."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import InputError
from semiovs_jax import compare, evaluate, train
from semiovs_jax.reporting.evaluation_report import checkpoint
from semiovs_jax.reporting.evaluation_report.confusion import draw_confusion
from semiovs_jax.runs.saved_config import get_config
from semiovs_jax.runtime import sharding
from tests.experiment import shrunk_demo
from tests.html_page import SelfContained


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """Cheaper to compile for than eight."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (train, checkpoint):
            patch.setattr(module, "make_mesh", lambda: sharding.Mesh(np.array(jax.devices()[:1]), ("data",)))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    changes = {"method.name": "supervised", "method.ood": "none", "train.steps": 2}
    changes |= {"train.eval_every_steps": 1, "train.checkpoint_every_steps": 1}
    train.train_and_evaluate(shrunk_demo(folder, **changes), folder / "run")
    return folder / "run"


def run_evaluate(run: Path, which: str = "latest", out: Path | None = None) -> None:
    evaluate.main(SimpleNamespace(config=get_config(str(run)), workdir=str(run), which=which, out=out))


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    run_evaluate(run)
    return run / "evaluation" / "2"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_run(run: Path, report: Path):
    record = json.loads((report / "eval.json").read_text())
    last = json.loads((run / "result.json").read_text())["last"]
    assert record["iou"] == last["iou"]
    assert {key: record[key] for key in ("miou", "miou_present", "pixel_accuracy", "step")} == {
        key: last[key] for key in ("miou", "miou_present", "pixel_accuracy", "step")
    }
    assert record["images"] == 4
    assert record["checkpoint"] == str(run / "checkpoints" / "2")
    assert record["config_sha256"] == json.loads((run / "result.json").read_text())["config_sha256"]
    assert record["protocol"].startswith("every validation image whole")
    assert record["versions"]["jax"] == jax.__version__
    assert record["boundary_iou"].keys() == record["iou"].keys()
    assert 0 <= record["ece"] <= 1
    assert len(record["calibration"]) == 15


def test_a_run_ends_with_a_picture_and_a_page(run: Path):
    picture = Image.open(run / "predictions.png")
    assert picture.width == 3 * (240 + 6) + 6
    page = SelfContained((run / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    last = json.loads((run / "result.json").read_text())["last"]
    assert f"mIoU {100 * last['miou']:.1f} %, step 2" in text
    assert all(name in text for name in ("val_000000", "val_000001", "val_000002", "val_000003"))  # all there are
    assert (run / "summary.txt").read_text().strip() in text


def test_two_runs_are_drawn_beside_each_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "pictures.png"
    compare.main([str(run), f"{run}/", f"--pictures={out}"])
    assert f"wrote {out}" in capsys.readouterr().out
    assert Image.open(out).width == 4 * (240 + 6) + 6


def test_the_confusion_matrix_has_the_scores(report: Path):
    rows = read_csv(report / "confusion.csv")
    names = [row["true class"] for row in rows]
    pixels = np.array([int(row["pixels"]) for row in rows])
    counts = np.array([[float(row[name] or 0) for name in names] for row in rows]) * pixels[:, None]
    record = json.loads((report / "eval.json").read_text())
    assert np.diagonal(counts).sum() / counts.sum() == pytest.approx(record["pixel_accuracy"])
    circle = names.index("circle")
    union = counts[circle].sum() + counts[:, circle].sum() - counts[circle, circle]
    assert counts[circle, circle] / union == pytest.approx(record["iou"]["circle"])
    assert Image.open(report / "confusion.png").format == "PNG"


def test_every_image_has_a_row(run: Path, report: Path):
    rows = read_csv(report / "images.csv")
    listed = (run.parent / "shapes" / "splits" / "val.txt").read_text().split()
    assert [f"{row['image']}.jpg" for row in rows] == listed[::2]
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("miou", "pixel_accuracy", "confidence"))


def test_the_page_is_one_file_with_pictures_and_curves(report: Path):
    page = SelfContained((report / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    record = json.loads((report / "eval.json").read_text())
    assert f"shapes: {record['title']}" in text
    assert f"{100 * record['miou']:.1f} %" in text
    assert len(page.pictures) == 1 + 3 * 4  # the matrix; photograph, truth and prediction of two worst and two best
    assert page.tags.count("polyline") == 1 + 9  # mean and classes
    lowest = min(read_csv(report / "images.csv"), key=lambda row: float(row["miou"]))
    assert text.index("Lowest mIoU") < text.index(lowest["image"]) < text.index("Highest mIoU")


def test_the_table_names_the_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    best = json.loads((run / "result.json").read_text())["best"]["step"]
    run_evaluate(run, "best", tmp_path / "report")
    printed = capsys.readouterr().out
    assert f"best, step {best}" in printed.splitlines()[0]
    assert "boundary mIoU" in printed
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_predicted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("semiovs_jax.evaluation.evaluator.Evaluator.predictions", None)
    with pytest.raises(InputError, match=r"--out=.*file/report: cannot be written .* choose a folder you may write to"):
        run_evaluate(run, out=tmp_path / "file" / "report")


def test_the_run_can_be_compared(run: Path, capsys: pytest.CaptureFixture):
    compare.main([str(run)])
    last = json.loads((run / "result.json").read_text())["last"]
    assert f"{100 * last['miou']:.2f}" in capsys.readouterr().out


def test_names_of_classes_are_no_formulas():
    assert draw_confusion(np.array([[3, 1], [0, 0]]), ["$x$_{", "b$"])[:4] == b"\x89PNG"
