import jax
import jax.numpy as jnp
import numpy as np
import pytest

from semiovs_jax.models.sed.aggregator import SedLogits, unit
from semiovs_jax.ovs.training.sed_losses import best_concept, binary_cross_entropy, contrastive_loss, sed_losses

IGNORE = 255


def _label(rng, shape, classes):
    label = rng.integers(0, classes, shape)
    label[rng.random(shape) < 0.3] = IGNORE
    return label


def _by_hand(logits, label, ignore_as_negative):
    """The mean over pixels and classes, one by one."""
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    values = []
    for n, y, x in np.ndindex(label.shape):
        if label[n, y, x] == IGNORE and not ignore_as_negative:
            continue
        for k in range(logits.shape[1]):
            p = probability[n, k, y, x]
            values.append(-np.log(p if label[n, y, x] == k else 1 - p))
    return np.mean(values)


def _resized(plane, side):
    """Bilinear interpolation of [h, w] between pixel centers, as torch's align_corners=False."""
    rows, columns = (
        np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1).astype(np.float64)
        for length in plane.shape
    )
    by_row = np.stack([np.interp(columns, np.arange(plane.shape[1]), row) for row in plane])
    return np.stack([np.interp(rows, np.arange(plane.shape[0]), column) for column in by_row.T], axis=1)


@pytest.mark.parametrize("ignore_as_negative", [False, True])
def test_cross_entropy_is_the_mean_over_pixels_and_classes(ignore_as_negative):
    rng = np.random.default_rng(0)
    logits, label = 3 * rng.standard_normal((2, 4, 5, 6)).astype(np.float32), _label(rng, (2, 5, 6), 4)
    found = jax.jit(binary_cross_entropy, static_argnames=("ignore_index", "ignore_as_negative"))(
        logits, label, ignore_index=IGNORE, ignore_as_negative=ignore_as_negative
    )
    np.testing.assert_allclose(found, _by_hand(logits, label, ignore_as_negative), rtol=1e-5)


def test_nothing_but_ignored_pixels_is_no_loss():
    loss, gradient = jax.value_and_grad(
        lambda logits: binary_cross_entropy(logits, jnp.full((1, 2, 2), IGNORE), ignore_index=IGNORE)
    )(jnp.ones((1, 3, 2, 2)))
    assert float(loss) == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("ignore_as_negative", [False, True])
def test_every_head_is_resized_to_the_label(ignore_as_negative):
    rng = np.random.default_rng(1)
    label = _label(rng, (2, 12, 12), 3)
    mask, *auxiliary = (rng.standard_normal((2, 3, side, side)).astype(np.float32) for side in (8, 1, 2, 4))
    found = sed_losses(
        SedLogits(mask, tuple(auxiliary)),
        label,
        (0, 1, 2),
        ignore_index=IGNORE,
        ignore_as_negative=ignore_as_negative,
    )
    assert list(found) == ["mask", "auxiliary_0", "auxiliary_1", "auxiliary_2"]
    for loss, logits in zip(found.values(), (mask, *auxiliary), strict=True):
        resized = np.stack([[_resized(plane, 12) for plane in image] for image in logits])
        np.testing.assert_allclose(loss, _by_hand(resized, label, ignore_as_negative), rtol=1e-5)


def test_a_class_is_its_best_concept():
    logits = np.random.default_rng(2).standard_normal((2, 5, 3, 3)).astype(np.float32)
    found = best_concept(jnp.asarray(logits), (0, 0, 1, 2, 2))
    expected = np.stack([logits[:, :2].max(1), logits[:, 2], logits[:, 3:].max(1)], axis=1)
    np.testing.assert_array_equal(found, expected)


def test_contrastive_loss_knows_the_right_words():
    text = unit(jax.random.normal(jax.random.key(0), (3, 2, 16)))
    label = np.array([[[0, 1], [2, IGNORE]]])
    right = unit(text.mean(1))[np.where(label == IGNORE, 0, label)]
    good, bad = (float(contrastive_loss(7.0 * dense, text, label, (0, 1, 2))) for dense in (right, jnp.flip(right, 1)))
    cosine = np.einsum("nhwd,td->nhwt", right, unit(text.mean(1)))
    log_softmax = jax.nn.log_softmax(20 * cosine)
    expected = -np.mean([log_softmax[0, y, x, label[0, y, x]] for y, x in ((0, 0), (0, 1), (1, 0))])
    np.testing.assert_allclose(good, expected, rtol=1e-5)
    assert good < bad


def test_every_class_counts_alike_in_the_contrastive_loss():
    text = unit(jax.random.normal(jax.random.key(0), (3, 1, 8)))
    dense = jax.random.normal(jax.random.key(1), (1, 1, 4, 8))
    label = np.array([[[0, 0, 0, 2]]])
    apart = [float(contrastive_loss(dense, text, np.where(label == k, label, IGNORE), (0, 1, 2))) for k in (0, 2)]
    np.testing.assert_allclose(contrastive_loss(dense, text, label, (0, 1, 2)), np.mean(apart), rtol=1e-6)
