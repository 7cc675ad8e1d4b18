"""Checkpoints of earlier versions are restored."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints.checkpointer import Checkpointer, restore_weights
from semiovs_jax.labelers.snapshots import Snapshots, SnapshotState
from tests.checkpoints.toy import assert_equal, make_iterator, make_state, update


@struct.dataclass
class EarlierTrainState:
    """The train state of earlier versions, in which "bank" was the only state of a labeler."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    bank: SnapshotState | None


def save_earlier(workdir, state, bank):
    earlier = EarlierTrainState(state.step, state.params, state.batch_stats, state.opt_state, bank)
    with Checkpointer(workdir) as checkpointer:
        assert checkpointer.save(1, earlier, make_iterator(), {})


@pytest.mark.parametrize("devices", [1, 4])
def test_snapshots_that_an_earlier_version_saved_are_restored_bit_for_bit(tmp_path, devices):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), PartitionSpec())
    target = make_state(sharding=sharding, labelers={"snapshots": Snapshots(None, capacity=3, draws=1)})
    held = target.labelers["snapshots"].offer(target.params, target.batch_stats, jnp.float32(0.25))
    save_earlier(tmp_path, update(target, jnp.arange(8)), held)
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(target, make_iterator())
    expected = update(target, jnp.arange(8)).replace(labelers={"snapshots": held})
    assert held.pushed == 1
    assert_equal(restored, expected)
    assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in jax.tree.leaves(restored))
    weights, _ = restore_weights(tmp_path, {"params": target.params})
    assert_equal(weights, {"params": expected.params})


def test_a_state_that_an_earlier_version_saved_without_snapshots_is_restored(tmp_path):
    state = update(make_state(), jnp.arange(8))
    save_earlier(tmp_path, state, None)
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(jax.eval_shape(make_state), make_iterator())
    assert restored.labelers == {}
    assert_equal(restored, state)


def test_snapshots_of_an_earlier_version_that_the_method_has_no_use_for_are_refused(tmp_path):
    state = make_state()
    save_earlier(tmp_path, state, SnapshotState.create(state.params, state.batch_stats, 2))
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError, match="checkpoint: labelers/snapshots/b"):
        checkpointer.restore(state, make_iterator())
