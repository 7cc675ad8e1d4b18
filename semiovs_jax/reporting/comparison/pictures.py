"""The predictions of several runs for the same validation images, in one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.errors import Faults, InputError
from data_pipelines.files import whole_file
from data_pipelines.pipeline import ValidationRecords
from semiovs_jax.evaluation.measures import ImagePrediction
from semiovs_jax.reporting.comparison.read import ComparedRun
from semiovs_jax.reporting.evaluation_report import OpenedCheckpoint, open_checkpoint
from semiovs_jax.reporting.examples import draw_examples, images_of_all_classes, make_examples
from semiovs_jax.runs.saved_config import get_config

_MOST = 16  # images


def draw_pictures(runs: Sequence[ComparedRun], path: Path) -> None:
    """Draws validation images beside their ground truth and the predictions of each run's best checkpoint.

    The images are as few as show every class. They depend on the labels alone: other runs get the same images.

    Args:
      runs: the runs, of the same validation images and classes.
      path: the PNG file, which is written atomically.

    Raises:
      InputError: a run has no checkpoint, the runs have other validation images or classes, or a file cannot be read
        or written.
    """
    faults, opened = Faults(), []
    for run in runs:
        with faults.collected():
            opened.append(open_checkpoint(get_config(run.name), run.name, "best"))
    faults.refuse()
    _refuse_other_images(runs, opened)
    dataset, records = opened[0].evaluation.model.dataset, opened[0].evaluation.evaluator.records
    chosen = images_of_all_classes(_label_pixels(records, dataset.num_classes), 1, _MOST)
    predicted = [_predict(checkpoint, chosen) for checkpoint in opened]
    examples = make_examples(predicted[0].values(), records)
    columns = {
        f"{name}\n{_score(checkpoint)}": [found[at].prediction for at in chosen]
        for name, checkpoint, found in zip(_short_names([run.name for run in runs]), opened, predicted, strict=True)
    }
    picture = draw_examples([examples[at] for at in chosen], columns, dataset)
    with whole_file(path) as part:
        Image.fromarray(picture).save(part, format="png")


def _refuse_other_images(runs: Sequence[ComparedRun], opened: Sequence[OpenedCheckpoint]) -> None:
    def shown(checkpoint: OpenedCheckpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
        model, evaluator = checkpoint.evaluation
        return model.dataset.classes, tuple(evaluator.records.ids())

    first = shown(opened[0])
    if others := [run.name for run, checkpoint in zip(runs, opened, strict=True) if shown(checkpoint) != first]:
        raise InputError(
            f"--pictures: {', '.join(others)} has other validation images or classes than {runs[0].name}; name runs of "
            "one validation split"
        )


def _label_pixels(records: ValidationRecords, classes: int) -> np.ndarray:
    """Pixels of each class in each label: int64 [N, K]."""
    return np.stack([np.bincount(record["label"].ravel(), minlength=256)[:classes] for record in records])


def _predict(checkpoint: OpenedCheckpoint, chosen: Sequence[int]) -> dict[int, ImagePrediction]:
    model, evaluator = checkpoint.evaluation
    weights = model.weights(checkpoint.restored.state)
    return {found.position: found for found in evaluator.predictions(*weights, only=chosen)}


def _short_names(names: Sequence[str]) -> Sequence[str]:
    """The last parts of paths, as many as tell them apart."""
    paths = [Path(name).parts for name in names]
    for count in range(1, max(map(len, paths)) + 1):
        short = ["/".join(parts[-count:]) for parts in paths]
        if len(set(short)) == len(short):
            return short
    return names


def _score(checkpoint: OpenedCheckpoint) -> str:
    miou = checkpoint.restored.meta.get("miou")
    return f"step {checkpoint.step}" if miou is None else f"mIoU {100 * miou:.1f} %"
