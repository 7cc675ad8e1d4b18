import numpy as np
import pytest

from semiovs_jax.evaluation.calibration import BINS, bin_sums, calibration


def test_a_bin_holds_its_upper_end_and_not_its_lower_one():
    found = calibration(bin_sums(np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 1.0]), np.array([False, True, True, False])))
    assert [entry.pixels for entry in found.bins] == [2, 1, *[0] * 12, 1]
    assert found.bins[0].accuracy == 0.5
    assert found.bins[2].confidence is None
    assert found.bins[2].accuracy is None
    assert (found.bins[0].low, found.bins[-1].high) == (0, 1)


def test_ece_is_the_weighted_mean_of_the_gaps():
    # Three pixels at 0.9, two of them right; one at 0.5, right: (3 * |2/3 - 0.9| + 1 * |1 - 0.5|) / 4.
    found = calibration(bin_sums(np.array([0.9, 0.9, 0.9, 0.5]), np.array([True, True, False, True])))
    assert found.ece == pytest.approx((3 * (0.9 - 2 / 3) + 0.5) / 4)


def test_sums_of_images_add_up_to_the_sums_of_all_pixels():
    rng = np.random.default_rng(0)
    confidence = rng.random(1000).astype(np.float32)
    correct = rng.random(1000) < confidence  # calibrated
    parts = bin_sums(confidence[:300], correct[:300]) + bin_sums(confidence[300:], correct[300:])
    found, whole = calibration(parts), calibration(bin_sums(confidence, correct))
    assert found.ece == pytest.approx(whole.ece)
    assert found.ece < 0.1
    assert calibration(bin_sums(confidence, ~correct)).ece > 0.3
    expected = sum(
        inside.sum() / 1000 * abs(correct[inside].mean() - confidence[inside].mean())
        for low in np.arange(BINS) / BINS
        if (inside := (confidence > low) & (confidence <= low + 1 / BINS)).any()
    )
    assert found.ece == pytest.approx(expected)


def test_no_pixels_have_no_error():
    assert calibration(bin_sums(np.zeros(0), np.zeros(0, bool))).ece == 0
