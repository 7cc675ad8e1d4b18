"""python -m semiovs_jax.predict on a tiny run: what it writes, skips, names and refuses."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from semiovs_jax import predict
from semiovs_jax.evaluate import evaluate
from semiovs_jax.evaluation import metrics
from semiovs_jax.runs.saved_config import get_config

DATASET = dataset_info("shapes")


def call(run: Path, source: object, out: Path, **changes) -> None:
    flags = {
        "config": get_config(str(run)),
        "workdir": str(run),
        "which": "best",
        "source": str(source),
        "out": str(out),
        "scales": ["1"],
        "flip": False,
    }
    predict.main(SimpleNamespace(**flags | changes))


@pytest.fixture(scope="module")
def predicted(run: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions for the validation images."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    names = "\n".join(map(str, photos))
    (out.parent / "val.txt").write_text(names)
    call(run, out.parent / "val.txt", out)
    return out


def label_files(out: Path) -> dict[str, Path]:
    """The label of each image, by its name."""
    return {path.stem: path for path in (out / "labels").rglob("*.png")}


def test_the_labels_have_the_scores_of_evaluation_exactly(run: Path, folder: Path, predicted: Path):
    confusion = np.zeros((DATASET.num_classes, DATASET.num_classes), np.int64)
    for name, path in label_files(predicted).items():
        truth = np.asarray(Image.open(folder / "shapes" / "SegmentationClass" / f"{name}.png"))
        valid = truth != DATASET.ignore_index
        np.add.at(confusion, (truth[valid], np.asarray(Image.open(path))[valid]), 1)
    expected = evaluate(run)
    scores = metrics.scores(confusion)
    assert scores.pixel_accuracy == expected["pixel_accuracy"] > 0
    assert scores.mean_iou == expected["miou"]
    present = {name: iou for name, iou in expected["iou"].items() if iou is not None}
    assert present == {
        name: iou for name, iou, found in zip(DATASET.classes, scores.iou, scores.present, strict=True) if found
    }


def test_every_image_has_a_label_a_confidence_and_an_overlay(predicted: Path, photos: list[Path]):
    labels = label_files(predicted)
    assert sorted(labels) == [photo.stem for photo in photos]
    for photo in photos:
        size = Image.open(photo).size
        label = Image.open(labels[photo.stem])
        confidence = Image.open(str(labels[photo.stem]).replace("/labels/", "/confidence/"))
        overlay = Image.open(str(labels[photo.stem]).replace("/labels/", "/overlay/").replace(".png", ".jpg"))
        assert (label.mode, confidence.mode, overlay.mode) == ("P", "L", "RGB")
        assert label.size == confidence.size == overlay.size == size
        assert label.getpalette() == DATASET.palette.ravel().tolist()
        assert np.asarray(label).max() < DATASET.num_classes
        assert np.asarray(confidence).min() >= int(255 / DATASET.num_classes)  # of the likeliest class
    rows = list(csv.DictReader((predicted / "predictions.csv").open()))
    assert [row["image"] for row in rows] == list(map(str, photos))
    assert all((predicted / row["label"]).is_file() and 0 < float(row["mean_confidence"]) <= 1 for row in rows)
    assert not list(predicted.rglob("*.part"))


class Page(HTMLParser):
    """Ids in their order, confidences in percent, and the addresses of everything that is loaded."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        text = path.read_text(encoding="utf-8")
        self.feed(text)
        self.confidences = [float(value) for value in re.findall(r"confidence ([\d.]+) %", text)]
        self.addresses += re.findall(r"url\(([^)]*)\)", text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_contact_sheet_shows_the_least_confident_first(predicted: Path, photos: list[Path]):
    page = Page(predicted / "contact_sheet.html")
    assert not page.open
    assert len(page.confidences) == len(photos)
    assert page.confidences == sorted(page.confidences)
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    text = (predicted / "contact_sheet.html").read_text()
    assert all(f"{name}</li>" in text for name in DATASET.classes)


def test_what_exists_is_not_predicted_again(
    run: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, out = tmp_path / "photos", tmp_path / "out"
    source.mkdir()
    for photo in photos:
        shutil.copy(photo, source)
    call(run, source, out)
    assert "4 images predicted, 0 were there, 0 cannot be used" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    first, second, third, fourth = sorted((out / "labels").iterdir())
    times = {path: path.stat().st_mtime_ns for path in (first, fourth)}
    second.unlink()
    third.write_bytes(third.read_bytes()[:-20])  # damaged
    call(run, source, out)
    assert "2 images predicted, 2 were there, 0 cannot be used" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times

    shutil.copy(photos[1], source / photos[0].name)  # another image of the same name
    call(run, source, out)
    assert "1 images predicted, 3 were there, 0 cannot be used" in capsys.readouterr().out
    assert (np.asarray(Image.open(first)) == np.asarray(Image.open(second))).all()


def test_images_that_cannot_be_used_are_named_and_the_others_are_done(
    run: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "header.png").write_bytes(b"no image")
    (tmp_path / "tail.jpg").write_bytes(photos[0].read_bytes()[:700])  # the header can be read
    names = ["header.png", "gone.png", str(photos[0]), "tail.jpg", str(photos[1])]
    (tmp_path / "list.txt").write_text("\n".join(names))
    with pytest.raises(SystemExit) as end:
        call(run, tmp_path / "list.txt", tmp_path / "out")
    assert end.value.code == 1
    captured = capsys.readouterr()
    named = [line for line in captured.err.splitlines() if line.startswith("not predicted: ")]
    assert len(named) == 3
    assert all(any(f"{tmp_path}/{name}: " in line for line in named) for name in ("header.png", "gone.png", "tail.jpg"))
    assert "2 images predicted, 0 were there, 3 cannot be used" in captured.out
    assert sorted(label_files(tmp_path / "out")) == [photo.stem for photo in photos[:2]]
    assert len(Page(tmp_path / "out" / "contact_sheet.html").confidences) == 2


def test_a_source_without_a_usable_image_is_refused(run: Path, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 1 images can be used: .*a\.png: is damaged or not an image"):
        call(run, tmp_path / "a.png", tmp_path / "out")


def test_a_zip_has_the_predictions_of_its_folder(run: Path, predicted: Path, photos: list[Path], tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for photo in photos:
            archive.write(photo, f"sub/{photo.name}")
    call(run, tmp_path / "val.zip", tmp_path / "out")
    for name, path in label_files(predicted).items():
        zipped = tmp_path / "out" / "labels" / "sub" / f"{name}.png"
        assert (np.asarray(Image.open(path)) == np.asarray(Image.open(zipped))).all()


def test_predictions_of_another_checkpoint_are_refused(run: Path, predicted: Path):
    step = json.loads((predicted / "predictions.json").read_text())["step"]
    other = run / "checkpoints" / str(3 - step)
    message = rf"holds other predictions \(step was {step}, is {3 - step}; weights_sha256 was .*; choose another --out"
    with pytest.raises(InputError, match=message):
        call(run, predicted.parent / "val.txt", predicted, workdir=str(other))


def test_predictions_with_other_views_are_refused(run: Path, predicted: Path):
    message = r"scales was \[1\.0\], is \[0\.5, 1\.0\]; flip was False, is True"
    with pytest.raises(InputError, match=message):
        call(run, predicted.parent / "val.txt", predicted, scales=["0.5", "1"], flip=True)


def test_predictions_of_other_images_are_refused(run: Path, predicted: Path, photos: list[Path]):
    with pytest.raises(InputError, match=r"source was '.*val\.txt', is '.*val_000000\.jpg'"):
        call(run, photos[0], predicted)


def test_a_folder_with_other_files_is_refused(run: Path, photos: list[Path], tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(InputError, match=r"holds files but no predictions\.json; choose another --out"):
        call(run, photos[0], tmp_path)


def test_scales_that_are_no_numbers_are_refused(run: Path, photos: list[Path], tmp_path: Path):
    with pytest.raises(InputError, match=r"--scales=1,large: .*; give numbers, such as 0\.5,1,1\.5"):
        call(run, photos[0], tmp_path, scales=["1", "large"])


def test_the_command_reads_paths_on_stdin_and_ends_with_status_1(run: Path, photos: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "semiovs_jax.predict", f"--workdir={run}", "--source=-", f"--out={out}"]
    command += ["--config.eval.batch_size=1", "--config.eval.window=33", "--config.eval.stride=20"]
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    done = subprocess.run(
        command, input=f"{photos[0]}\ngone.png\n", capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "1 images predicted, 0 were there, 1 cannot be used" in done.stdout
    assert f"{out / 'contact_sheet.html'}" in done.stdout
    assert "not predicted: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(label_files(out)) == [photos[0].stem]
    assert json.loads((out / "predictions.json").read_text())["window"] == 33
