import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semiovs_jax import losses
from tests.golden import Golden, assert_matches, golden_path
from tests.replays.losses_unimatch import ohem_cross_entropy, ohem_kept, replay

few = settings(max_examples=15, deadline=None)
MODES = ["pixelwise", "pixelratio", "pixelavg"]
seeds = st.integers(0, 2**31)


def batch(seed, n=3, classes=5):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(3 * rng.standard_normal((n, 6, 7, classes)), jnp.float32)
    label = jnp.asarray(rng.integers(0, classes, (n, 6, 7)))
    confidence = jnp.asarray(rng.random((n, 6, 7)), jnp.float32)
    valid = jnp.asarray(rng.random((n, 6, 7)) < 0.8)
    return logits, label, confidence, valid


def test_reference():
    golden = Golden(golden_path("losses_unimatch"))
    assert_matches(golden, replay(golden, double=False))


@few
@given(seeds)
def test_cross_entropy_is_minus_log_softmax(seed):
    logits, label, *_ = batch(seed)
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.cross_entropy(logits, label), expected, atol=1e-5)
    half = losses.cross_entropy(logits.astype(jnp.bfloat16), label)
    assert half.dtype == jnp.float32
    assert jnp.isfinite(losses.cross_entropy(logits, jnp.full_like(label, 255))).all()


@few
@given(seeds, st.sampled_from(MODES), st.floats(0, 1))
def test_gated_mean_ignores_order_and_invalid_pixels(seed, mode, threshold):
    _, _, confidence, valid = batch(seed)
    loss = jnp.asarray(np.random.default_rng(seed + 1).random(valid.shape), jnp.float32)
    value = losses.gated_mean(loss, confidence, valid, threshold, mode)
    order = np.random.default_rng(seed).permutation(len(loss))
    permuted = losses.gated_mean(loss[order], confidence[order], valid[order], threshold, mode)
    np.testing.assert_allclose(value, permuted, rtol=1e-5)
    spoiled = losses.gated_mean(
        jnp.where(valid, loss, jnp.nan), jnp.where(valid, confidence, jnp.nan), valid, threshold, mode
    )
    np.testing.assert_allclose(value, spoiled, rtol=1e-5)
    assert 0 <= value <= losses.masked_mean(loss, valid) * (1 + 1e-5)


@few
@given(seeds, st.sampled_from(["pixelwise", "pixelratio"]), st.floats(0, 1), st.floats(0, 1))
def test_gates_close_as_the_threshold_rises(seed, mode, a, b):
    _, _, confidence, valid = batch(seed)
    loss = jnp.asarray(np.random.default_rng(seed + 1).random(valid.shape), jnp.float32)
    low, high = (losses.gated_mean(loss, confidence, valid, t, mode) for t in (min(a, b), max(a, b)))
    assert high <= low * (1 + 1e-6)
    np.testing.assert_allclose(
        losses.gated_mean(loss, confidence, valid, 0.0, mode), losses.masked_mean(loss, valid), rtol=1e-5
    )


def test_gated_mean_counts_confident_ties():
    loss = jnp.array([[[1.0, 1, 1, 1]]])
    confidence = jnp.array([[[0.94, 0.95, 0.96, 0.95]]])
    valid = jnp.array([[[True, True, True, False]]])
    assert losses.gated_mean(loss, confidence, valid, 0.95) == pytest.approx(2 / 3)
    assert losses.gated_mean(loss, confidence, valid, 0.95, "pixelratio") == pytest.approx(2 / 3)
    assert losses.gated_mean(loss, confidence, valid, 0.95, "pixelavg") == pytest.approx(0.95)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_valid_is_zero_with_zero_gradient(mode):
    logits, label, confidence, valid = batch(0)
    nothing = jnp.zeros_like(valid)

    def loss(logits):
        return losses.gated_mean(losses.cross_entropy(logits, label), confidence, nothing, 0.5, mode)

    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == 0
    assert (gradient == 0).all()


def test_unknown_mode():
    _, _, confidence, valid = batch(0)
    with pytest.raises(ValueError, match="pixelwide"):
        losses.gated_mean(confidence, confidence, valid, 0.5, "pixelwide")


@few
@given(seeds, st.floats(0, 1), st.integers(0, 150))
def test_ohem_keeps_the_hardest(seed, threshold, min_kept):
    logits, label, _, valid = batch(seed)
    kept = np.asarray(ohem_kept(logits, label, valid, threshold=threshold, min_kept=min_kept))
    probability = np.exp(-np.asarray(losses.cross_entropy(logits, label)))
    assert not (kept & ~np.asarray(valid)).any()
    dropped = np.asarray(valid) & ~kept
    assert kept.sum() >= min(min_kept, int(valid.sum()))
    if dropped.any():
        assert probability[dropped].min() > threshold
        assert not kept.any() or probability[dropped].min() >= probability[kept].max()


def test_ohem_on_a_batch_without_valid_pixels():
    logits, label, _, valid = batch(0)
    nothing = jnp.zeros_like(valid)
    assert ohem_cross_entropy(logits, label, nothing, threshold=0.7, min_kept=10) == 0


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        logits, label, confidence, valid = batch(0)
        loss = losses.cross_entropy(logits.astype(jnp.float64), label)
        assert losses.gated_mean(loss, confidence, valid, 0.5).dtype == jnp.float64
        assert losses.masked_mean(loss, valid).dtype == jnp.float64
