"""The page of a run: one HTML file that includes its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.checking.survey import SplitReport
from data_pipelines.datasets import DatasetInfo
from semiovs_jax import html_pages
from semiovs_jax.html_pages import swatch, text
from semiovs_jax.reporting.examples import Example
from semiovs_jax.reporting.html_parts import STYLE, class_curves, example_figure, percent, table, wide_picture
from semiovs_jax.reporting.run_page.contents import Contents, OodLabels, Shown
from semiovs_jax.runtime.config_keys import flat
from semiovs_jax.runtime.program import other_command

_CONTACT_SHEET = "contact_sheet.html"
_STYLE = (
    STYLE
    + """
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; font-size: .9em; }
details { margin: 2rem 0; }
summary { cursor: pointer; font-size: 1.05rem; font-weight: 600; margin-bottom: .6rem; }
.paper img { max-width: 100%; height: auto; }
"""
)


def format_page(
    workdir: Path,
    dataset: DatasetInfo,
    result: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    contents: Contents,
    *,
    summary: str,
    curves_png: bytes,
) -> str:
    """The page as HTML.

    Args:
      workdir: folder of the run, for the commands.
      dataset: class names and palette.
      result: the content of result.json.
      history: evaluations of the run, lines of the metrics log.
      contents: what is not in the workdir.
      summary: the content of summary.txt.
      curves_png: the learning curves.
    """
    shown, scores = contents.shown, result.get("best")
    worst, best = (shown.worst, shown.best) if shown else ((), ())
    score = f", mIoU {percent(scores['miou'])}" if scores else ""
    sections = {
        "Predictions": _every_class(shown, dataset) if shown else "",
        "Classes": _class_table(result, shown, dataset) if scores else "",
        "IoU over the run, 0 to 100 %": class_curves(history, dataset) if scores else "",
        "Learning curves": wide_picture("learning curves", curves_png),
        "Lowest mIoU: photograph, ground truth, prediction": _ranked(worst, dataset),
        "Highest mIoU: photograph, ground truth, prediction": _ranked(best, dataset),
        "Labels of OOD images: photograph, label, confidence": _ood(contents.ood, dataset) if contents.ood else "",
        "Data": _data(contents.splits, dataset),
        "The run before its first step": f"<pre>{text(summary)}</pre>",
        "How to go on": _commands(workdir),
    }
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections.items() if content)
    body = f"{_facts(workdir, result, contents.config)}\n{body}\n{_config(contents.config)}"
    method = contents.config["method"]["name"]
    return html_pages.page(f"{dataset.name}, {method}{score}", body, _STYLE)


def _facts(workdir: Path, result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    method = config["method"]
    facts: dict[str, Any] = {"workdir": workdir, "method": f"{method['name']}, OOD images: {method['ood']}"}
    for name in ("best", "last"):
        if record := result.get(name):
            facts[f"{name} mIoU"] = f"{percent(record['miou'])}, step {record['step']}"
    for key in ("protocol", "seconds_since_start", "git_revision", "config_sha256"):
        if result.get(key):
            facts[key.replace("_", " ")] = result[key]
    if seconds := result.get("seconds"):
        facts["seconds by phase"] = ", ".join(f"{phase} {value:,.1f}" for phase, value in seconds.items())
    if bad := result.get("bad_records"):
        facts["images left out"] = ", ".join(bad)
    return html_pages.facts(facts)


def _every_class(shown: Shown, dataset: DatasetInfo) -> str:
    figures = "".join(example_figure(example, "", dataset) for example in shown.every_class)
    return f"<p>Validation images that show every class: photograph, ground truth, prediction.</p>\n{_images(figures)}"


def _ranked(examples: Sequence[tuple[Example, float]], dataset: DatasetInfo) -> str:
    return _images("".join(example_figure(example, f"mIoU {percent(miou)}", dataset) for example, miou in examples))


def _images(figures: str) -> str:
    return f'<div class="images">\n{figures}</div>' if figures else ""


def _class_table(result: Mapping[str, Any], shown: Shown | None, dataset: DatasetInfo) -> str:
    best, last = result["best"], result["last"]
    pixels = None if shown is None else shown.label_pixels / max(shown.label_pixels.sum(), 1)

    def row(name: str, index: int) -> list[str]:
        iou = best["iou"][name]
        bar = f'<div class="bar" style="width: {8 * (iou or 0):.2f}rem"></div>'
        share = percent(None if pixels is None else float(pixels[index]))
        return [f"{swatch(index, dataset)} {text(name)}", percent(iou), bar, percent(last["iou"][name]), share]

    mean = ["<b>mIoU</b>", f"<b>{percent(best['miou'])}</b>", "", f"<b>{percent(last['miou'])}</b>", ""]
    header = ("class", f"IoU, step {best['step']} (best)", "", f"IoU, step {last['step']} (last)", "of all pixels")
    return table(header, [*(row(name, index) for index, name in enumerate(dataset.classes)), mean])


def _ood(labels: OodLabels, dataset: DatasetInfo) -> str:
    figures = "".join(
        html_pages.labeled_figure(f"<b>{text(found.name)}</b>", found.image, found.label, found.confidence, dataset)
        for found in labels.sample
    )
    sheet = labels.folder / _CONTACT_SHEET
    more = f"more in {text(sheet)}" if sheet.is_file() else f"in {text(labels.folder)}"
    return f"<p>{len(labels.sample)} labels, evenly spread; {more}</p>\n{html_pages.heat_scale()}\n{_images(figures)}"


def _data(splits: Mapping[str, SplitReport], dataset: DatasetInfo) -> str:
    sizes = table(
        ("split", "images", "unreadable", "smallest", "median", "largest", "files"),
        (
            [
                text(split),
                f"{found.records:,}",
                str(found.unreadable),
                *([f"{width} x {height}" for width, height in found.sizes] or ["-"] * 3),
                text(", ".join(f"{count:,} {kind}" for kind, count in found.images.items())),
            ]
            for split, found in splits.items()
        ),
    )
    labeled = {split: found for split, found in splits.items() if found.values}
    if not labeled:
        return sizes
    header = ["class"]
    for split in labeled:
        header += [f"{text(split)}: images", "pixels"]
    rows = [
        [f"{swatch(index, dataset)} {text(name)}", *_shares(labeled, index)]
        for index, name in [*enumerate(dataset.classes), (dataset.ignore_index, "ignored")]
    ]
    return f"{sizes}\n<p>Labels by class: images that show it, and its share of all pixels.</p>\n{table(header, rows)}"


def _shares(labeled: Mapping[str, SplitReport], index: int) -> list[str]:
    cells = []
    for found in labeled.values():
        total = sum(count.pixels for count in found.values.values())
        count = found.values.get(index)
        cells += [f"{count.images:,}", html_pages.percent(count.pixels / total)] if count else ["-", "-"]
    return cells


def _commands(workdir: Path) -> str:
    run = f"--workdir={workdir}"
    commands = {
        "all measures of the best checkpoint, with boundary IoU and calibration": ("evaluate", run),
        "predict images of your own": ("predict", run, "--source=IMAGES", "--out=FOLDER"),
        "compare with another run": ("compare", str(workdir), "RUN", "--pictures=FILE.png"),
        "the model without this package": ("export", run, "--format=stablehlo", "--out=FOLDER"),
    }
    lines = "\n".join(f"{other_command(*words)}  # {meaning}" for meaning, words in commands.items())
    return (
        f"<pre>{text(lines)}</pre>\n<p>A longer run: the command that trained this one, with a larger "
        "--config.train.steps.</p>"
    )


def _config(config: Mapping[str, Any]) -> str:
    rows = "".join(f"config.{key} = {value!r}\n" for key, value in flat(config))
    return f"<details><summary>Config</summary>\n<pre>{text(rows)}</pre></details>"
