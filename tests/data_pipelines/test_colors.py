"""Colors of new datasets can be told apart, by the color-blind, too."""

import numpy as np
import pytest

from data_pipelines.datasets import dataset_info, voc_palette
from data_pipelines.datasets.colors import color_distances, distinct_colors

BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
JUST_NOTICEABLE = 2.3  # CIE 1976


def least_distance(colors: np.ndarray) -> float:
    distances = color_distances(np.concatenate([BLACK_AND_WHITE, colors]))
    return distances[~np.eye(len(distances), dtype=bool)].min()


@pytest.mark.parametrize("count", [1, 2, 8, 21])
def test_colors_differ_from_each_other_from_black_and_from_white(count: int):
    colors = distinct_colors(count)
    assert colors.shape == (count, 3)
    assert least_distance(colors) > 7 * JUST_NOTICEABLE > 4 * least_distance(voc_palette()[1 : 1 + max(4, count)])


def test_as_many_as_a_label_can_have_are_all_different():
    assert len(np.unique(distinct_colors(255), axis=0)) == 255


def test_more_classes_keep_the_colors_of_the_first():
    np.testing.assert_array_equal(distinct_colors(12)[:5], distinct_colors(5))


def test_those_without_red_cones_hardly_tell_red_from_black():
    red, black, blue = np.array([[120, 0, 0], [0, 0, 0], [0, 0, 255]], np.uint8)
    found = color_distances(np.stack([red, black, blue]))
    assert found[0, 1] < found[0, 2] / 2


def test_the_colors_of_the_benchmark_differ_from_each_other_and_are_seen_on_black():
    shapes = dataset_info("shapes")
    colors = shapes.palette[1 : shapes.num_classes]
    assert least_distance(colors) > 6 * JUST_NOTICEABLE > 3 * least_distance(voc_palette()[1 : shapes.num_classes])
    assert contrast_on_black(colors).min() >= 3


def contrast_on_black(colors: np.ndarray) -> np.ndarray:
    """The contrast ratio of WCAG 2.2."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return (linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05
