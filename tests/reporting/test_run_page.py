"""A run ends in a picture and a page."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs import demo
from data_pipelines.checking.survey import SplitReport, ValueCount
from data_pipelines.datasets import dataset_info
from semiovs_jax.reporting import panels, run_page
from semiovs_jax.reporting.examples import Example, draw_examples, images_of_all_classes, lowest_and_highest
from semiovs_jax.reporting.run_page.contents import LabeledImage
from semiovs_jax.runtime.provenance import config_as_json
from tests.html_page import SelfContained

SHAPES = dataset_info("shapes")
IOU = {name: index / 10 for index, name in enumerate(SHAPES.classes)}
SCORES = {"miou": 0.4, "miou_present": 0.4, "pixel_accuracy": 0.9, "iou": IOU}


def example(name: str, true: int, predicted: int) -> Example:
    planes = (np.full((20, 30), index, np.uint8) for index in (true, predicted))
    return Example(name, np.full((20, 30, 3), 200, np.uint8), *planes)


@pytest.mark.parametrize(
    ("pixels", "least", "most", "expected"),
    [
        ([[9, 1, 0], [9, 0, 1], [5, 5, 5], [9, 0, 0]], 1, 9, [2]),  # one image shows all
        ([[9, 1, 0], [8, 1, 1], [9, 0, 0]], 2, 9, [1, 0]),  # the rest again
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1, 2, [0, 1]),  # no more than allowed
        ([[999, 1, 0], [90, 10, 0], [0, 0, 1]], 1, 9, [1, 2]),  # one pixel in a thousand is no sight
        ([[0, 0, 0], [1, 0, 0]], 2, 9, [1, 0]),  # an image without labels comes last
        ([[5, 5, 0], [5, 5, 0]], 1, 9, [0]),  # a class that no image shows
    ],
)
def test_images_are_chosen_to_show_every_class(pixels, least: int, most: int, expected: list[int]):
    assert images_of_all_classes(np.array(pixels), least, most) == expected


def test_the_worst_and_the_best_images_are_none_of_each_other():
    miou = np.array([0.5, np.nan, 0.1, 0.9, 0.7])
    assert lowest_and_highest(miou, 3) == ([2, 0], [3, 4])
    assert lowest_and_highest(miou, 1) == ([2], [3])
    assert lowest_and_highest(miou[:1], 3) == ([0], [])
    assert lowest_and_highest(miou[1:2], 3) == ([], [])


def test_a_picture_has_the_predictions_of_every_run_and_a_legend(monkeypatch: pytest.MonkeyPatch):
    entries: list[Any] = []
    wrap = panels._wrap
    monkeypatch.setattr(panels, "_wrap", lambda legend, width: (entries.extend(legend), wrap(legend, width))[1])
    shown = [example("a", 1, 2), example("b", 3, 3)]
    one = draw_examples(shown, {"a run": [found.prediction for found in shown]}, SHAPES)
    two = draw_examples(shown, {name: [np.full((20, 30), 255)] * 2 for name in ("a run\nmIoU", "b")}, SHAPES)
    assert two.shape[1] - one.shape[1] == 240 + 6
    names = [name for name, _ in entries]
    assert names == ["circle", "square", "triangle", "circle", "triangle", "ignored"]


def contents(ood_folder: Path | None) -> run_page.Contents:
    config = config_as_json(demo.get_config())
    values = {0: ValueCount(4, 300, "a.png"), 5: ValueCount(1, 100, "a.png")}
    splits = {
        "labeled": SplitReport(12, 0, {"JPEG RGB": 12}, ((30, 20), (31, 20), (32, 20)), {"PNG P": 12}, values),
        "ood": SplitReport(400, 1, {"JPEG RGB": 400}, ((30, 20),) * 3, None, {}),
    }
    shown = run_page.Shown(
        [example("cover", 1, 1)], [(example("worst <1>", 1, 2), 0.125)], [(example("best", 3, 3), 1.0)], np.arange(9)
    )
    certain = np.full((20, 30), 255, np.uint8)
    image = LabeledImage("cat.jpg", np.zeros((20, 30, 3), np.uint8), np.full((20, 30), 4, np.uint8), certain)
    return run_page.Contents(config, splits, shown, run_page.OodLabels(ood_folder, [image]) if ood_folder else None)


def page_of(found: run_page.Contents, result: Mapping[str, Any]) -> SelfContained:
    history = [SCORES | {"step": step} for step in (10, 20)] if "best" in result else []
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    page = run_page.format_page(
        Path("runs/a b"), SHAPES, result, history, found, summary="data  12 <labeled>", curves_png=picture.getvalue()
    )
    return SelfContained(page)


def test_the_page_of_a_run_is_one_file_with_all_of_it(tmp_path: Path):
    (tmp_path / "contact_sheet.html").write_text("")
    scores = {name: SCORES | {"step": 20} for name in ("best", "last")}
    result = {"protocol": "whole images", "bad_records": ["x.jpg"], **scores}
    page = page_of(contents(tmp_path), result)
    text = " ".join(page.text)
    for part in (
        "shapes, unimatch, mIoU 40.0 %",
        "whole images",
        "x.jpg",
        "data  12 <labeled>",
        "worst <1>",
        "12.5 %",
        f"more in {tmp_path / 'contact_sheet.html'}",
        "cat.jpg",
        "30 x 20",
        "config.ovs.image_size = 256",
        "evaluate '--workdir=runs/a b'",
    ):
        assert part in text, part
    assert page.tags.count("polyline") == 1 + SHAPES.num_classes
    assert len(page.pictures) == 1 + 3 * 3 + 3  # curves; three examples; an OOD image
    titles = ("Predictions", "Classes", "Learning curves", "Lowest", "Labels of OOD images", "Data", "How to go on")
    order = [text.index(title) for title in titles]
    assert order == sorted(order)


def test_a_run_without_scores_and_ood_labels_has_a_page_of_the_rest():
    page = page_of(contents(None)._replace(shown=None), {"protocol": "whole images"})
    text = " ".join(page.text)
    assert "shapes, unimatch" in text
    assert "Learning curves" in text
    assert not any(word in text for word in ("Predictions", "Classes", "mIoU:", "photograph"))
