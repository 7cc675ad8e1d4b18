"""Training data for tiny OVS models: drawn scenes of the out-of-distribution domain, labeled by concept."""

import hashlib
import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

import grain
import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from data_pipelines.errors import InputError
from data_pipelines.shapes.benchmark import scene_rng
from data_pipelines.shapes.drawing import BACKGROUND, IGNORE_INDEX, OOD_DOMAIN, SCENE_CLASSES, draw_scene
from data_pipelines.shapes.outlines import TARGETS, UNIT_OUTLINES
from semiovs_jax.ovs.vocabulary import Vocabulary

MAX_SIDE = OOD_DOMAIN.sides[1]
"""Largest height and width of a scene, in pixels."""


class Scenes(NamedTuple):
    """Square training scenes.

    Attributes:
      image: uint8 [M, S, S, 3].
      label: uint8 [M, s, s], indices of the vocabulary's concepts; 255 is the ignore index.
    """

    image: np.ndarray | jax.Array
    label: np.ndarray | jax.Array


def concept_of_scene_class(vocabulary: Vocabulary) -> np.ndarray:
    """Index of the concept of each scene class, int [len(SCENE_CLASSES)].

    Raises:
      InputError: the first synonyms of the concepts differ from `SCENE_CLASSES`.
    """
    names = [concept.synonyms[0] for concept in vocabulary.concepts]
    if sorted(names) != sorted(SCENE_CLASSES):
        raise InputError(
            f"{vocabulary.origin}: the first synonyms of its concepts must be {', '.join(SCENE_CLASSES)}; "
            f"they are {', '.join(names)}"
        )
    return np.array([names.index(name) for name in SCENE_CLASSES])


def draw_scenes(seed: int, count: int, image_size: int, label_size: int, concept_of_class: np.ndarray) -> Scenes:
    """Draws scenes and resizes them to squares, as the models resize images."""
    lookup = np.full(256, IGNORE_INDEX, np.uint8)
    lookup[: len(concept_of_class)] = concept_of_class
    image = np.empty((count, image_size, image_size, 3), np.uint8)
    label = np.empty((count, label_size, label_size), np.uint8)
    for index in tqdm(range(count), desc="draw scenes", unit="scene"):
        scene, classes = draw_scene(scene_rng(seed, "ovs", index), OOD_DOMAIN)
        image[index] = _resized(scene, image_size, Image.Resampling.BILINEAR)
        label[index] = _resized(lookup[classes], label_size, Image.Resampling.NEAREST)
    return Scenes(image, label)


def scene_batches(
    scenes: Scenes, batch_size: int, seed: int, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless batches of scenes, each mirrored with probability 1/2.

    Args:
      scenes: on the host.
      batch_size: number of scenes in a global batch, a multiple of `process_count`.
      seed: a batch depends on the seed and its own number only.
      process_index: index of this process, which gets one block of rows of each batch.
      process_count: number of processes.

    Returns:
      Yields {"labeled": {"image" uint8 [B, S, S, 3], "label" uint8 [B, s, s], "valid" bool [B, S, S]}}, as
      `data_pipelines.pipeline` does for files.
    """
    local = batch_size // process_count
    source = _SceneBatches(scenes, batch_size, seed, slice(process_index * local, (process_index + 1) * local))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


class _SceneBatches:
    """A whole batch for every step. Grain's own shuffling and batching would cost more than the copies here."""

    def __init__(self, scenes: Scenes, batch_size: int, seed: int, rows: slice):
        self._scenes = scenes
        self._batch_size = batch_size
        self._seed = seed
        self._rows = rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        rng = np.random.default_rng([self._seed, step])
        index = rng.integers(len(self._scenes.image), size=self._batch_size)[self._rows]
        mirror = rng.random(self._batch_size)[self._rows] < 0.5
        image, label = (np.asarray(array)[index] for array in self._scenes)
        for array in (image, label):
            array[mirror] = array[mirror, :, ::-1]
        return {"labeled": {"image": image, "label": label, "valid": np.ones(image.shape[:3], bool)}}


def held_out_scenes(seed: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scenes of the out-of-distribution part of the benchmark with this seed. Training never draws them.

    Yields:
      Image uint8 [H, W, 3] and label uint8 [H, W]. Distractors are labeled as background.
    """
    for index in range(count):
        scene, classes = draw_scene(scene_rng(seed, "ood", index), OOD_DOMAIN)
        distractor = (classes > len(TARGETS)) & (classes != IGNORE_INDEX)
        yield scene, np.where(distractor, np.uint8(BACKGROUND), classes)


def data_sha256(vocabulary: Vocabulary) -> str:
    """Hex digest of everything that decides the scenes: class names, outlines, motifs, domain and vocabulary."""
    domain = vars(OOD_DOMAIN) | {
        "grounds": [texture.__name__ for texture in OOD_DOMAIN.grounds],
        "fills": [texture.__name__ for texture in OOD_DOMAIN.fills],
        "motifs": {name: motif.__name__ for name, motif in OOD_DOMAIN.motifs.items()},
    }
    outlines = {name: [np.round(loop, 6).tolist() for loop in loops] for name, loops in UNIT_OUTLINES.items()}
    content = json.dumps([SCENE_CLASSES, outlines, domain, vocabulary.sha256], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _resized(plane: np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((side, side), resample))
