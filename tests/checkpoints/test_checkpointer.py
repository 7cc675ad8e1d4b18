"""A run that is resumed equals one that was never interrupted; the best checkpoint stays."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run, name_checkpoint, restore_weights
from tests.checkpoints.toy import (
    assert_equal,
    make_iterator,
    make_state,
    run,
    steps_on_disk,
    truncate,
    update,
    wait_and_restore,
)


def test_nothing_to_restore_gives_none(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(make_state(), make_iterator()) is None
        assert checkpointer.best is None


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(tmp_path):
    meta = describe_run(ConfigDict({"seed": 1, "data": {"scale_range": (0.5, 2.0)}}), {"num_classes": 9})
    expected, iterator = make_state(), make_iterator()
    for _ in range(6):
        expected = update(expected, next(iterator))

    state, iterator = make_state(), make_iterator()
    with Checkpointer(tmp_path) as checkpointer:
        for _ in range(3):
            state = update(state, next(iterator))
        assert checkpointer.save(3, state, iterator, meta, miou=0.25)
        assert not checkpointer.save(3, state, iterator, meta), "a step is saved once"

    iterator = make_iterator()
    with Checkpointer(tmp_path) as checkpointer:
        state, restored_meta = checkpointer.restore(jax.eval_shape(make_state), iterator)
        assert checkpointer.best == (3, 0.25)
    assert restored_meta == {**meta, "step": 3, "miou": 0.25, "best": {"step": 3, "miou": 0.25}}
    assert restored_meta["config"]["data"]["scale_range"] == [0.5, 2.0]
    for _ in range(3):
        state = update(state, next(iterator))
    assert_equal(state, expected)


def test_a_state_may_be_donated_while_it_is_being_written(tmp_path):
    state = {"x": jax.device_put(np.ones((256, 1024), np.float32))}
    increment = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, make_iterator(), {})
        for _ in range(10):
            state = increment(state)
        restored, _ = wait_and_restore(checkpointer, state)
    np.testing.assert_array_equal(restored["x"], 1)


def test_the_best_is_kept_while_the_latest_moves_on(tmp_path):
    run(tmp_path, range(1, 7), {2: 0.5, 4: 0.3, 6: float("nan")})
    assert steps_on_disk(tmp_path) == [2, 5, 6]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.best == (2, 0.5)
        state, meta = checkpointer.restore(make_state(), make_iterator())
        assert state.step == meta["step"] == 6
        assert meta["best"] == {"step": 2, "miou": 0.5}
        assert meta["miou"] is None
        for step, miou in ((7, 0.4), (8, 0.5), (9, None), (10, None)):
            checkpointer.save(step, state, make_iterator(), {}, miou)
    assert steps_on_disk(tmp_path) == [2, 9, 10], "of equal ones the earlier is the best"


@pytest.mark.parametrize(
    ("miou", "kept"),
    [({}, [5, 6]), ({1: 0.5, 4: 0.3}, [1, 5, 6]), ({1: 0.5, 4: 0.5}, [1, 5, 6]), ({1: 0.0}, [1, 5, 6])],
)
def test_scores_are_known_again_after_a_restart(tmp_path, miou, kept):
    for steps in ([1, 2, 3], [4, 5, 6]):
        run(tmp_path, steps, miou)
    assert steps_on_disk(tmp_path) == kept


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")])
def test_other_device_counts(tmp_path, spec):
    tree = {"kernel": jnp.arange(64.0).reshape(8, 8), "step": jnp.ones((8,), jnp.bfloat16)}

    def put(count):
        return jax.device_put(tree, NamedSharding(Mesh(np.array(jax.devices()[:count]), ("data",)), spec))

    with Checkpointer(tmp_path) as checkpointer:
        for step, (saving, restoring) in enumerate(((8, 4), (4, 1), (1, 8)), start=1):
            checkpointer.save(step, put(saving), make_iterator(), {})
            restored, _ = wait_and_restore(checkpointer, put(restoring))
            assert_equal(restored, tree)
            for leaf in jax.tree.leaves(restored):
                assert len(leaf.sharding.device_set) == restoring
                assert leaf.sharding.spec == spec


def test_another_process_count_takes_the_common_position(tmp_path):
    iterator = make_iterator()
    for _ in range(5):
        next(iterator)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, make_state(), iterator, {})
    expected = next(iterator)
    step_dir = tmp_path / "checkpoints" / "5"
    _rename_position(step_dir, ["process_0-of-2.json", "process_1-of-2.json"])
    iterator = make_iterator()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.restore(make_state(), iterator)
    np.testing.assert_array_equal(next(iterator), expected)


def _rename_position(step_dir, names):
    (saved,) = step_dir.glob("data/process_*")
    for name in names:
        (step_dir / "data" / name).write_bytes(saved.read_bytes())
    sums = json.loads((step_dir / "checksums.json").read_text())
    del sums[f"data/{saved.name}"]
    (step_dir / "checksums.json").write_text(json.dumps(sums))
    saved.unlink()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run(tmp_path, [1])
    other = make_state(width=12)
    other.params["neck"] = other.params["head"]
    other = other.replace(batch_stats={"norm": other.batch_stats["bn"]})
    other.params["backbone"]["layers"][1]["bias"] = jnp.ones(8, jnp.bfloat16)
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError) as error:
        checkpointer.restore(other, make_iterator())
    message = str(error.value)
    assert str(tmp_path) in message
    assert "saved model: toy" in message
    assert "only in the checkpoint: batch_stats/bn/mean" in message
    assert "only in this model: batch_stats/norm/mean, params/neck/kernel" in message
    assert "params/head/kernel (16, 8) instead of (12, 8)" in message
    assert "params/backbone/layers/1/bias float32 instead of bfloat16" in message
    assert "pass another --workdir" in message
    assert steps_on_disk(tmp_path) == [1], "a good checkpoint is never set aside"


def test_weights_of_the_best_and_of_the_latest(tmp_path):
    state = run(tmp_path, [1, 2, 3], {2: 0.5})
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    whole = {"params": state.params, "batch_stats": state.batch_stats}
    target = jax.device_put(whole, NamedSharding(mesh, PartitionSpec()))
    weights, meta = restore_weights(tmp_path, target)
    assert meta["step"] == 2
    assert_equal(weights, target)
    assert all(len(leaf.sharding.device_set) == 4 for leaf in jax.tree.leaves(weights))
    assert restore_weights(tmp_path, target, "latest").meta["step"] == 3
    assert restore_weights(tmp_path / "checkpoints" / "3", target).meta["step"] == 3
    truncate(tmp_path / "checkpoints" / "2")
    assert restore_weights(tmp_path, target).meta["step"] == 3
    assert steps_on_disk(tmp_path) == [2, 3], "a reader changes nothing"


def test_of_equally_good_checkpoints_the_weights_of_the_earlier_are_restored_first(tmp_path):
    state = run(tmp_path, [1, 2, 3, 4], {3: 0.5, 4: 0.5})
    assert restore_weights(tmp_path, {"params": state.params}).meta["step"] == 3
    truncate(tmp_path / "checkpoints" / "3")
    assert restore_weights(tmp_path, {"params": state.params}).meta["step"] == 4


def test_a_checkpoint_is_named_by_what_it_is(tmp_path):
    run(tmp_path, [1, 2, 3], miou={1: 0.5, 2: 0.3, 3: 0.4})
    names = [name_checkpoint(tmp_path / "checkpoints", step) for step in (1, 2, 3)]
    assert names == ["best, step 1", "step 2", "latest, step 3"]


def test_weights_of_a_run_that_never_saved(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        restore_weights(tmp_path, {"params": {}})


def test_paths_that_are_urls_or_that_orbax_would_not_find_again_are_refused(tmp_path, monkeypatch):
    for open_ in (Checkpointer, lambda path: restore_weights(path, {"params": {}})):
        with pytest.raises(InputError, match=r"--workdir=ftp://b/r: not a URL of object storage"):
            open_("ftp://b/r")
        with pytest.raises(InputError, match=r"path with \[ or \] cannot be restored"):
            open_(tmp_path / "run[1]")
    state = run(tmp_path / "home", [1])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert restore_weights("~/home", {"params": state.params}).meta["step"] == 1
