import numpy as np
import pytest

from data_pipelines.datasets import DatasetInfo, voc_palette
from semiovs_jax.evaluation import metrics
from semiovs_jax.evaluation.measures import ImagePrediction, measure

DATASET = DatasetInfo("letters", tuple("abc"), voc_palette(), 255, None, {})


def image(index: int, label: object, prediction: object, confidence: object = 0.5) -> ImagePrediction:
    label, prediction = np.array(label, np.uint8), np.array(prediction, np.uint8)
    return ImagePrediction(index, label, prediction, np.broadcast_to(np.float32(confidence), label.shape))


def test_measures_of_an_image_by_hand():
    # Class 0: 2 of 3 pixels, class 1: 1 of 2, class 2: absent; the ignored pixel is in none.
    found = measure([image(0, [[0, 0, 1, 1, 255]], [[0, 0, 0, 1, 2]], [[1, 0.5, 0.5, 0.5, 0]])], DATASET)
    assert found.images[0].miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.images[0].pixel_accuracy == 0.75
    assert found.images[0].confidence == 0.625
    np.testing.assert_array_equal(found.confusion, [[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert sum(entry.pixels for entry in found.calibration.bins) == 4
    assert np.isnan(found.boundary_iou[2])


def test_a_class_that_is_only_predicted_counts_in_the_mean_of_an_image():
    assert measure([image(0, [[0, 0]], [[0, 1]])], DATASET).images[0].miou == 0.25


def test_an_image_without_labels_has_no_measures_and_no_rank():
    found = measure([image(1, [[255]], [[2]]), image(0, [[1]], [[1]])], DATASET)
    assert found.images[1] == (1, None, None, None)
    assert [predicted.position for predicted in (*found.worst, *found.best)] == [0, 0]


def test_images_are_in_the_order_of_the_split_and_ranked_without_overlap():
    rights = [3, 9, 0, 7, 5, 1, 9]
    order = np.random.default_rng(0).permutation(7)
    predictions = [image(i, [[1] * 9], [[1] * rights[i] + [0] * (9 - rights[i])]) for i in order]
    found = measure(predictions, DATASET, examples=4)
    assert [entry.position for entry in found.images] == list(range(7))
    assert [entry.position for entry in found.worst] == [2, 5, 0]
    assert [entry.position for entry in found.best] == [1, 6, 3]  # the earlier one of equal images first
    assert len(measure(predictions, DATASET, examples=2).worst) == 2


def test_the_confusion_matrix_is_that_of_all_pixels():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 3, (2, 4, 6, 7)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    found = measure([image(i, label[i], prediction[i]) for i in range(4)], DATASET).confusion
    expected = metrics.confusion_matrix(label, prediction, label != 255, 3)
    np.testing.assert_array_equal(found, expected)
