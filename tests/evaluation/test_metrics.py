import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax.evaluation import metrics

count_pixels = jax.jit(metrics.confusion_matrix, static_argnums=3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7))
def test_confusion_counts_pairs(seed, classes):
    rng = np.random.default_rng(seed)
    label, prediction = (rng.integers(0, classes, (2, 8, 9)) for _ in range(2))
    valid = rng.random((2, 8, 9)) < 0.7
    label[~valid] = 255
    confusion = np.asarray(count_pixels(jnp.asarray(label), jnp.asarray(prediction), jnp.asarray(valid), classes))
    assert confusion.dtype == np.int32
    expected = np.zeros((classes, classes), int)
    np.add.at(expected, (label[valid], prediction[valid]), 1)
    np.testing.assert_array_equal(confusion, expected)
    assert confusion.sum() == valid.sum()

    scores = metrics.scores(confusion)
    assert ((scores.iou >= 0) & (scores.iou <= 1)).all()
    assert 0 <= scores.mean_iou <= scores.mean_iou_present <= 1
    assert 0 <= scores.pixel_accuracy <= 1
    np.testing.assert_allclose(metrics.scores(confusion.T).iou, scores.iou)


def test_both_means():
    # Class 2 is absent; class 1 is only ever predicted, which is a mistake and counts.
    scores = metrics.scores(np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(scores.iou, [0.75, 0, 0])
    np.testing.assert_array_equal(scores.present, [True, True, False])
    assert scores.mean_iou == 0.25
    assert scores.mean_iou_present == 0.375
    assert scores.pixel_accuracy == 0.75


def test_perfect_and_empty():
    perfect = metrics.scores(np.diag([3, 4]))
    assert perfect.mean_iou == perfect.mean_iou_present == perfect.pixel_accuracy == 1
    empty = metrics.scores(np.zeros((2, 2), int))
    assert empty.mean_iou == empty.mean_iou_present == empty.pixel_accuracy == 0


def test_a_count_beyond_float32_is_exact():
    label = jnp.zeros((1, 4097, 4097), jnp.uint8)
    assert int(count_pixels(label, label, label == 0, 1)[0, 0]) == 4097**2
    assert int(np.float32(4097**2)) != 4097**2


@pytest.mark.parametrize("pixels", [metrics._CHUNK - 1, metrics._CHUNK, 2 * metrics._CHUNK + 3])
def test_pixels_are_counted_chunk_by_chunk(pixels):
    label, prediction = np.random.default_rng(0).integers(0, 3, (2, 2, 1, pixels))
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (label, prediction), 1)
    np.testing.assert_array_equal(count_pixels(label, prediction, np.ones(label.shape, bool), 3), expected)


def test_counting_takes_less_memory_than_an_eighth_of_whole_one_hots():
    shape = (8, 512, 512)
    planes = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (np.uint8, np.int32, bool))
    compiled = count_pixels.lower(*planes, 60).compile()
    whole = 2 * 4 * 60 * np.prod(shape)
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 8


def test_large_counts_are_exact():
    label = jnp.zeros((2, 4100, 4100), jnp.uint8)
    assert int(count_pixels(label, label, label == 0, 1)[0, 0]) == 2 * 4100**2
