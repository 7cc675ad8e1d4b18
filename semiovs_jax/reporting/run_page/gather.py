"""Gathers what the page of a run shows."""

import contextlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from data_pipelines.datasets import DatasetInfo
from data_pipelines.errors import InputError
from data_pipelines.images.decode import decode_confidence, decode_image, decode_label
from data_pipelines.labels.manifest import labels_folder
from data_pipelines.loading.streams import with_labels
from data_pipelines.sources.records import Source
from semiovs_jax.evaluation.evaluator import Evaluator, ImageScores, NotFiniteLogitsError
from semiovs_jax.experiment import Experiment, open_ood_labels
from semiovs_jax.reporting.examples import images_of_all_classes, lowest_and_highest, make_examples
from semiovs_jax.reporting.run_page.contents import Contents, LabeledImage, OodLabels, Shown
from semiovs_jax.runtime.provenance import config_as_json

_LEAST, _MOST = 8, 16  # images that show every class
_RANKED = 6  # worst images, and best ones
_OOD_IMAGES = 6


def gather(
    config: ml_collections.ConfigDict,
    run: Experiment,
    evaluator: Evaluator,
    weights: tuple[Any, Any],
    scores: ImageScores | None,
) -> Contents:
    """Predicts a few validation images and reads a few OOD labels; every process must call this.

    Without panels (`config.train.panel_images`), nothing is predicted.

    Args:
      config: the experiment.
      run: its parts.
      evaluator: on its validation images.
      weights: parameters and running statistics of the model.
      scores: of each validation image with these weights; None to compute them.

    Raises:
      InputError: an image or a label of the validation split cannot be read.
    """
    shown = None
    if config.train.panel_images:
        with contextlib.suppress(NotFiniteLogitsError):
            shown = _shown(evaluator, weights, scores or evaluator.run_by_image(*weights)[1])
    return Contents(config_as_json(config), run.report.splits, shown, _ood(config, run))


def _shown(evaluator: Evaluator, weights: tuple[Any, Any], scores: ImageScores) -> Shown:
    every_class = images_of_all_classes(scores.label_pixels, _LEAST, _MOST)
    worst, best = lowest_and_highest(scores.miou, _RANKED)
    predictions = evaluator.predictions(*weights, only={*every_class, *worst, *best})
    examples = make_examples(predictions, evaluator.records)
    return Shown(
        [examples[at] for at in every_class],
        [(examples[at], float(scores.miou[at])) for at in worst],
        [(examples[at], float(scores.miou[at])) for at in best],
        scores.label_pixels.sum(0),
    )


def _ood(config: ml_collections.ConfigDict, run: Experiment) -> OodLabels | None:
    labels = open_ood_labels(config, run.method)
    if labels is None:
        return None
    source = with_labels(run.sources["ood"], labels, confidence=True)
    return OodLabels(labels_folder(config.ovs.labels_dir), list(_sample(source, run.dataset)))


def _sample(source: Source, dataset: DatasetInfo) -> Iterator[LabeledImage]:
    """A few images, evenly spread; those that cannot be read are left out, as a run may do with them."""
    for index in np.unique(np.linspace(0, len(source) - 1, _OOD_IMAGES).round().astype(int)).tolist():
        try:
            record = source[index]
            if record.label is None:
                continue
            image, label = decode_image(record.image), decode_label(record.label, dataset)
            confidence = decode_confidence(record.confidence) if record.confidence else np.full_like(label, 255)
        except InputError:
            continue
        yield LabeledImage(record.id, image, label, confidence)
