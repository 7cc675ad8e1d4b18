import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from data_pipelines.errors import InputError
from semiovs_jax.runtime import sharding


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), ()),
        ((64,), ()),  # small
        ((1024,), ("fsdp",)),
        ((3, 3, 64, 128), (None, None, None, "fsdp")),
        ((3, 3, 64, 126), (None, None, "fsdp")),  # 126 is no multiple of 4
        ((64, 64), ("fsdp",)),
        ((1023, 1001), ()),
    ],
)
def test_the_longest_dimension_that_the_devices_divide_is_split(shape: tuple, spec: tuple):
    given = jax.ShapeDtypeStruct(shape, jnp.float32)
    shared = sharding.share_state(sharding.make_mesh(jax.devices()[:8]), 4)
    assert dict(shared.shape) == {"data": 2, "fsdp": 4}
    assert sharding.state_shardings(given, shared).spec == PartitionSpec(*spec)
    alone = sharding.make_mesh(jax.devices()[:8])
    assert dict(alone.shape) == {"data": 8}
    assert sharding.state_shardings(given, alone).spec == PartitionSpec()


def test_a_batch_is_split_over_all_devices_and_the_state_over_those_that_share_it():
    mesh = sharding.share_state(sharding.make_mesh(jax.devices()[:8]), 4)
    batch = sharding.shard_batch(np.arange(16).reshape(16, 1), mesh)
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 1)}
    weights = np.arange(4096.0).reshape(64, 64)
    placed = sharding.put_state({"kernel": weights}, mesh)["kernel"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(16, 64)}
    np.testing.assert_array_equal(placed, weights)
    assert sharding.sharded_structs({"kernel": weights}, mesh)["kernel"].sharding == placed.sharding


def test_devices_that_cannot_share_are_refused():
    with pytest.raises(InputError, match=r"config.train.fsdp=3 does not divide the 8.*one of 1, 2, 4, 8"):
        sharding.share_state(sharding.make_mesh(jax.devices()[:8]), 3)
