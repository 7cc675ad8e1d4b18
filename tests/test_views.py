"""The views of a step: each strong view is that of its stream and key alone, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from semiovs_jax import augment, methods
from semiovs_jax.runtime import sharding
from semiovs_jax.views import make_views
from tests.made_up_batch import made_up_batch

COUNT, SIZE = 8, 17


@pytest.mark.parametrize("devices", [1, 8])
def test_views_are_those_of_each_stream_and_key_alone(devices: int):
    method = methods.make_method(common.semiovs_unimatch().method)
    batch = made_up_batch(method.streams, COUNT, SIZE)
    key = jax.random.key(3)
    sharded = sharding.shard_batch(batch, sharding.make_mesh(jax.devices()[:devices]))
    views = jax.jit(lambda key, batch: make_views(key, batch, method, (4,)))(key, sharded)
    strong1, strong2, box1, box2, _ = jax.random.split(key, 5)
    unlabeled = [name for name in method.streams if name != "labeled"]
    assert len(unlabeled) > 1
    assert set(views.s1) == set(views.s2) == set(unlabeled)
    for strong, found in ((strong1, views.s1), (strong2, views.s2)):
        for own, name in zip(jax.random.split(strong, len(unlabeled)), unlabeled, strict=True):
            expected = augment.strong_view(own, batch[name]["image"])
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    for own, found in ((box1, views.box1), (box2, views.box2)):
        np.testing.assert_array_equal(found, augment.cutmix_boxes(own, COUNT, SIZE))
    assert jnp.any(views.s1[unlabeled[0]] != views.s2[unlabeled[0]])
