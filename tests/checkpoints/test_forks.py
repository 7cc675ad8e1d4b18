"""A run starts from the checkpoint of another."""

import jax.numpy as jnp
import numpy as np

from semiovs_jax.checkpoints.checkpointer import Checkpointer
from tests.checkpoints.toy import make_iterator, make_state, run, steps_on_disk, truncate, wait_and_restore


def test_a_fork_starts_from_another_run_and_then_continues_on_its_own(tmp_path):
    source, fork = tmp_path / "source", tmp_path / "fork"
    iterator = make_iterator()
    for _ in range(5):
        next(iterator)
    with Checkpointer(source) as checkpointer:
        checkpointer.save(3, make_state().replace(step=jnp.int32(3)), make_iterator(), {})
        checkpointer.save(5, make_state().replace(step=jnp.int32(5)), iterator, {})
    expected = next(iterator)
    for from_, step in ((source, 5), (source / "checkpoints" / "3", 3)):
        iterator = make_iterator()
        with Checkpointer(fork) as checkpointer:
            state, _ = checkpointer.restore(make_state(), iterator, from_)
        assert state.step == step
        assert (np.array_equal(next(iterator), expected)) == (step == 5)
    with Checkpointer(fork) as checkpointer:
        checkpointer.save(9, make_state().replace(step=jnp.int32(9)), make_iterator(), {})
        state, _ = wait_and_restore(checkpointer, make_state())
        assert state.step == 9
        assert checkpointer.restore(make_state(), make_iterator(), source).state.step == 9
    assert steps_on_disk(source) == [3, 5], "the source is not changed"


def test_a_damaged_checkpoint_of_the_source_of_a_fork_is_skipped_and_left_there(tmp_path):
    run(tmp_path / "source", [1, 2])
    truncate(tmp_path / "source" / "checkpoints" / "2")
    with Checkpointer(tmp_path / "fork") as checkpointer:
        state, _ = checkpointer.restore(make_state(), make_iterator(), tmp_path / "source")
    assert state.step == 1
    assert steps_on_disk(tmp_path / "source") == [1, 2]
