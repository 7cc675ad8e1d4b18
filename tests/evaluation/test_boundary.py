import numpy as np
import pytest
from skimage.morphology import erosion

from semiovs_jax.evaluation.boundary import boundary_iou, boundary_of, boundary_width, count_boundaries


def eroded_away(mask: np.ndarray, width: int) -> np.ndarray:
    """As the paper's code: what erosions of a mask with a border of background remove from it."""
    left = np.pad(mask, 1)
    for _ in range(width):
        left = erosion(left, np.ones((3, 3), bool))
    return mask & ~left[1:-1, 1:-1]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_it_is_what_erosions_remove_from_the_mask_of_each_class(width):
    rng = np.random.default_rng(width)
    classes = rng.integers(0, 4, (8, 10)).repeat(13, 0).repeat(12, 1)
    expected = np.zeros(classes.shape, bool)
    for index in range(4):
        expected |= eroded_away(classes == index, width)
    found = boundary_of(classes, width)
    assert 0 < found.mean() < 1
    np.testing.assert_array_equal(found, expected)


def test_the_width_is_two_percent_of_the_diagonal():
    assert boundary_width(375, 500) == 12  # 0.02 * 625 = 12.5, rounded to even as Python does
    assert boundary_width(600, 800) == 20
    assert boundary_width(5, 7) == 1


def test_iou_of_boundaries_of_each_class_against_masks_one_by_one():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 3, (2, 6, 5)).repeat(12, 1).repeat(12, 2)
    width = boundary_width(*label.shape)
    counts = count_boundaries(label, prediction, np.ones(label.shape, bool), 4)
    for index in range(3):
        true, predicted = (eroded_away(plane == index, width) for plane in (label, prediction))
        assert counts.intersection[index] == (true & predicted).sum()
        assert counts.union[index] == (true | predicted).sum()
    iou = boundary_iou(counts)
    assert ((iou[:3] > 0) & (iou[:3] < 1)).all()
    assert np.isnan(iou[3])


def test_ignored_lines_around_objects_leave_a_perfect_prediction_perfect():
    label = np.zeros((60, 80), np.uint8)
    label[20:40, 30:60] = 1
    prediction = label.copy()
    label[18:22, 28:62] = label[38:42, 28:62] = 255
    counts = count_boundaries(label, prediction, label != 255, 2)
    np.testing.assert_array_equal(boundary_iou(counts), [1, 1])


def test_a_shifted_contour_costs_more_than_in_the_iou_of_masks():
    label, prediction = np.zeros((2, 100, 100), np.uint8)
    label[20:80, 20:80] = 1
    prediction[22:82, 20:80] = 1
    counts = count_boundaries(label, prediction, np.ones(label.shape, bool), 2)
    intersection, union = ((label & prediction) == 1).sum(), ((label | prediction) == 1).sum()
    assert boundary_iou(counts)[1] < 0.6 < 0.9 < intersection / union
