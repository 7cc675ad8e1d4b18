"""Evaluation on padded shapes gives the confusion matrix of a loop over unpadded images."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.datasets import DatasetInfo, voc_palette
from semiovs_jax import augment, metrics
from semiovs_jax.evaluate import Evaluator
from semiovs_jax.sharding import make_mesh
from tests.models.test_student import CLASSES, student

IGNORE = 255
DATASET = DatasetInfo("letters", tuple("abcde"), voc_palette(), IGNORE, None, {})
SIZES = [(40, 60), (33, 64), (64, 33), (50, 50), (20, 90), (41, 61), (64, 64), (31, 31), (40, 60), (90, 20), (7, 5)]


class Records(Sequence):
    """Validation images of given sizes, with labels of 0..last_class and a share of ignored pixels."""

    def __init__(self, sizes: list[tuple[int, int]], last_class: int = CLASSES - 1):
        self._sizes, self._last_class = sizes, last_class

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self._sizes[index], 3), np.uint8)
        label = rng.integers(0, self._last_class + 1, self._sizes[index]).astype(np.uint8)
        label[rng.random(label.shape) < 0.2] = IGNORE
        return {"id": str(index), "image": image, "label": label}

    def sizes(self) -> list[tuple[int, int]]:
        return self._sizes


class Positional:
    """A student whose logits depend on the pixel and on where it lies in the true image."""

    def __init__(self):
        self.shapes: set[tuple[int, ...]] = set()  # as traced: one for each compilation

    def apply(self, params, batch_stats, x, *, train, size):
        assert not train
        self.shapes.add(x.shape)
        row = (1 + jnp.arange(x.shape[1])[:, None]) / size[:, :1, None]
        column = (1 + jnp.arange(x.shape[2])) / size[:, 1:, None]
        place = jnp.stack(jnp.broadcast_arrays(row, column), axis=-1)
        return x @ params["pixel"] + place @ params["place"], batch_stats


PARAMS = {
    "pixel": jnp.asarray(np.random.default_rng(0).normal(size=(3, CLASSES)), jnp.float32),
    "place": jnp.asarray(np.random.default_rng(1).normal(size=(2, CLASSES)), jnp.float32),
}


def evaluator(
    student: Any, records: Records, *, batch_size: int = 3, max_shapes: int = 4, devices: int = 8
) -> Evaluator:
    config = ConfigDict({"batch_size": batch_size, "max_shapes": max_shapes})
    return Evaluator(student, records, DATASET, config, make_mesh(jax.devices()[:devices]))


def by_single_images(student: Any, records: Records, params: Any, batch_stats: Any) -> metrics.Scores:
    """The reference's protocol: one image at a time at its own size, counted in numpy."""
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for record in (records[i] for i in range(len(records))):
        image, label = augment.weak_view(jnp.asarray(record["image"])[None]), record["label"]
        size = jnp.asarray([label.shape], jnp.int32)
        logits, _ = student.apply(params, batch_stats, image, train=False, size=size)
        prediction = np.asarray(logits[0].argmax(-1))
        np.add.at(confusion, (label[label != IGNORE], prediction[label != IGNORE]), 1)
    return metrics.scores(confusion)


def assert_same(found: metrics.Scores, expected: metrics.Scores) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("batch_size", "max_shapes"), [(3, 4), (8, 1), (5, 2)])
def test_equals_a_loop_over_single_images(devices, batch_size, max_shapes):
    student, records = Positional(), Records(SIZES)
    found = evaluator(student, records, batch_size=batch_size, max_shapes=max_shapes, devices=devices).run(PARAMS, {})
    rows = -(-batch_size // devices) * devices
    assert {shape[0] for shape in student.shapes} == {rows}
    assert len(student.shapes) <= max_shapes
    assert_same(found, by_single_images(Positional(), records, PARAMS, {}))


def test_a_second_run_compiles_nothing():
    student, records = Positional(), Records(SIZES)
    both = evaluator(student, records)
    first = both.run(PARAMS, {})
    student.shapes.clear()
    assert_same(both.run(PARAMS, {}), first)
    assert not student.shapes


def test_absent_classes_count_as_zero_in_one_mean_and_not_in_the_other():
    absent = CLASSES - 1
    params = {"pixel": PARAMS["pixel"].at[:, absent].set(0), "place": PARAMS["place"].at[:, absent].set(-1e6)}
    scores = evaluator(Positional(), Records(SIZES[:4], last_class=absent - 1)).run(params, {})
    assert scores.present.tolist() == [True] * absent + [False]
    assert scores.mean_iou == pytest.approx(scores.iou.sum() / CLASSES)
    assert scores.mean_iou_present == pytest.approx(scores.iou.sum() / absent)


def test_a_student_of_convolutions():
    apply, params, batch_stats = student()
    records = Records([(33, 40), (40, 33), (40, 33)])
    found = evaluator(SimpleNamespace(apply=apply), records, max_shapes=1, devices=1).run(params, batch_stats)
    unpadded = SimpleNamespace(apply=lambda *args, size, train: apply(*args, train=train))
    assert len(set(found.iou)) > 1
    assert_same(found, by_single_images(unpadded, records, params, batch_stats))


def test_protocol_says_what_was_done():
    assert "own size" in Evaluator.protocol
    assert "absent classes as 0" in Evaluator.protocol
