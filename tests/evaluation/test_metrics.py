import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax.evaluation import metrics


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7))
def test_confusion_counts_pairs(seed, classes):
    rng = np.random.default_rng(seed)
    label, prediction = (rng.integers(0, classes, (2, 8, 9)) for _ in range(2))
    valid = rng.random((2, 8, 9)) < 0.7
    label[~valid] = 255
    confusion = np.asarray(
        metrics.confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), jnp.asarray(valid), classes)
    )
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


def test_large_counts_are_exact():
    label = jnp.zeros((2, 4100, 4100), jnp.uint8)
    count = jax.jit(metrics.confusion_matrix, static_argnums=3)
    assert int(count(label, label, label == 0, 1)[0, 0]) == 2 * 4100**2
