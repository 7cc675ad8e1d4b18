import jax.numpy as jnp
import numpy as np

from semiovs_jax.labelers.ovs import binarize_confidence
from semiovs_jax.ovs.base import PseudoLabel

LABEL = jnp.asarray([[[3, 255, 1]]], jnp.uint8)
CONFIDENCE = jnp.asarray([[[0.9, 0.9, 0.2]]])
VALID = jnp.asarray([[[True, True, True]]])
FOUND = PseudoLabel(LABEL, CONFIDENCE, VALID)


def test_ovs_labels_count_whatever_their_confidence():
    found = binarize_confidence(FOUND, ignore_index=255)
    np.testing.assert_array_equal(found.label, [[[3, 0, 1]]])
    np.testing.assert_array_equal(found.confidence, [[[1, 1, 1]]])
    np.testing.assert_array_equal(found.valid, [[[True, False, True]]])


def test_below_the_threshold_they_are_valid_without_confidence():
    found = binarize_confidence(FOUND, ignore_index=255, threshold=0.5)
    np.testing.assert_array_equal(found.confidence, [[[1, 1, 0]]])
    np.testing.assert_array_equal(found.valid, [[[True, False, True]]])
