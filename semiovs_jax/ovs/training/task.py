"""Training and evaluation data of a SED: drawn scenes, or the files of a dataset."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import grain
import jax
import ml_collections
import numpy as np

from data_pipelines.datasets import dataset_info
from data_pipelines.errors import InputError
from data_pipelines.loading.options import Options
from data_pipelines.loading.streams import open_config_split
from data_pipelines.pipeline import ValidationRecords, make_train_iterator
from data_pipelines.shapes.drawing import IGNORE_INDEX
from semiovs_jax.evaluation.metrics import Scores
from semiovs_jax.models.sed.file import SedWeights
from semiovs_jax.ovs.options import check_choices
from semiovs_jax.ovs.sed import make_sed
from semiovs_jax.ovs.training.quality import label_quality
from semiovs_jax.ovs.training.scenes import (
    MAX_SIDE,
    concept_of_scene_class,
    data_sha256,
    draw_scenes,
    held_out_scenes,
    scene_batches,
)
from semiovs_jax.ovs.vocabulary import Concept, Vocabulary, load_vocabulary


class Task(NamedTuple):
    """Training data of a SED.

    Attributes:
      vocabulary: training labels are indices of its classes.
      ignore_index: the label of pixels to leave out.
      batches: yields {"labeled": {"image", "label", "valid", ...}}, the rows of this process.
    """

    vocabulary: Vocabulary
    ignore_index: int
    batches: grain.DatasetIterator


def one_class_per_concept(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with every concept as a class of its own, named after its first synonym."""
    concepts = tuple(Concept(index, concept.synonyms) for index, concept in enumerate(vocabulary.concepts))
    return dataclasses.replace(vocabulary, classes=tuple(c.synonyms[0] for c in concepts), concepts=concepts)


def make_task(config: ml_collections.ConfigDict) -> Task:
    """Opens the training data: drawn scenes with labels by concept, or the labeled split of a dataset.

    Args:
      config: the whole config. `config.data.source` is "scenes" or "files".

    Raises:
      InputError: `config.data.source` is invalid, the vocabulary does not match the classes, or a file is missing or
        malformed.
    """
    data, seed = config.data, config.seed
    check_choices("config.data", data, {"source": ("scenes", "files")})
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    if data.source == "scenes":
        vocabulary = load_vocabulary(config.vocabulary, templates=config.templates)
        concepts, side = concept_of_scene_class(vocabulary), config.model.image_size
        scenes = draw_scenes(seed, data.images, side, side // config.train.label_stride, concepts)
        batches = scene_batches(scenes, config.train.batch_size, seed, **processes)
        return Task(one_class_per_concept(vocabulary), IGNORE_INDEX, batches)
    if data.crop_size != config.model.image_size:
        raise InputError(
            f"config.data.crop_size={data.crop_size} is not config.model.image_size={config.model.image_size}; "
            "set both to the side of the image tower's square input"
        )
    dataset = dataset_info(data.dataset)
    vocabulary = load_vocabulary(config.vocabulary, dataset.num_classes, templates=config.templates)
    sources = {"labeled": open_config_split(data, "labeled")}
    batch_size = config.train.batch_size
    files = make_train_iterator(sources, dataset, Options.read(data), batch_size=batch_size, seed=seed, **processes)
    return Task(vocabulary, dataset.ignore_index, files.iterator)


def held_out_quality(config: ml_collections.ConfigDict, sed: SedWeights) -> tuple[Scores | None, tuple[str, ...]]:
    """Scores the labels of the first `config.data.held_out` held-out images; None if that number is 0.

    Held-out images are scenes that training never draws, or the validation split.

    Returns:
      The scores, and the class names.
    """
    data = config.data
    vocabulary = load_vocabulary(config.vocabulary, templates=config.templates)
    if not data.held_out:
        return None, vocabulary.classes
    samples: Iterator[tuple[np.ndarray, np.ndarray]]
    if data.source == "scenes":
        samples = held_out_scenes(config.seed, data.held_out)
        label_size, ignore_index = (MAX_SIDE, MAX_SIDE), IGNORE_INDEX
    else:
        dataset = dataset_info(data.dataset)
        records = ValidationRecords(open_config_split(data, "val"), dataset)
        sizes = records.sizes[: data.held_out]
        label_size = (max(height for height, _ in sizes), max(width for _, width in sizes))
        ignore_index = dataset.ignore_index
        samples = ((record["image"], record["label"]) for record in itertools.islice(records, data.held_out))
    return label_quality(make_sed(sed, vocabulary), samples, label_size, ignore_index), vocabulary.classes


def data_facts(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Facts about the training data, for the metadata of the weights."""
    vocabulary = load_vocabulary(config.vocabulary, templates=config.templates)
    if config.data.source == "scenes":
        return {
            "source": "trained by semiovs_jax.ovs.train on drawn scenes of the out-of-distribution domain",
            "data_sha256": data_sha256(vocabulary),
        }
    source = f"trained by semiovs_jax.ovs.train on {config.data.dataset}, {config.data.labeled_split}"
    return {"source": source, "vocabulary_sha256": vocabulary.sha256}
