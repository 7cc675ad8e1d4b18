import errno
import json
import logging
import os
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints import checkpointer as module
from semiovs_jax.checkpoints.checkpointer import Checkpointer, describe_run, restore_weights
from semiovs_jax.labelers.snapshots import Snapshots, SnapshotState
from semiovs_jax.train_state import TrainState

OPTIMIZER = optax.chain(
    optax.trace(0.9),
    optax.partition(
        {"backbone": optax.scale(-0.1), "head": optax.scale_by_schedule(lambda step: -1.0 / (1 + step))},
        lambda params: {name: jax.tree.map(lambda _, n=name: n, tree) for name, tree in params.items()},
    ),
)


def make_state(width=16, sharding=None, labelers=None):
    # Integer keys are what lists of NNX modules become.
    params = {
        "backbone": {"layers": {0: {"kernel": jnp.arange(8.0 * width).reshape(8, width)}, 1: {"bias": jnp.ones(8)}}},
        "head": {"kernel": jnp.full((width, 8), 2.0)},
    }
    state = TrainState.create(params, {"bn": {"mean": jnp.zeros(width)}}, OPTIMIZER, labelers or {})
    return jax.device_put(state, sharding) if sharding else state


@jax.jit
def update(state, batch):
    """A step whose result depends on the state, on the momentum and on the data."""
    grads = jax.tree.map(lambda p: 0.01 * p + jnp.mean(batch), state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def make_iterator():
    dataset = grain.MapDataset.range(1000).seed(3).shuffle().repeat().batch(8)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(workdir, steps, miou=(), **options):
    """Saves a state at each of `steps`, with the mIoU of `miou` where it has one; returns the state."""
    state = make_state()
    with Checkpointer(workdir, **options) as checkpointer:
        for step in steps:
            state = state.replace(step=jnp.int32(step))
            assert checkpointer.save(step, state, make_iterator(), {"model": "toy"}, dict(miou).get(step))
    return state


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


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
        restored, _ = _wait_and_restore(checkpointer, state)
    np.testing.assert_array_equal(restored["x"], 1)


def _wait_and_restore(checkpointer, target):
    checkpointer.wait()
    return checkpointer.restore(target, make_iterator())


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


def _empty(step_dir):
    for path in sorted(step_dir.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def _truncate(step_dir):
    largest = max((p for p in step_dir.glob("state/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])


def _flip_a_byte(step_dir):
    largest = max((p for p in step_dir.glob("state/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _lose_the_position(step_dir):
    next(step_dir.glob("data/process_*")).unlink()


def _garble_the_meta(step_dir):
    (step_dir / "meta" / "metadata").write_text("{")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_empty, "incomplete, state, data, meta missing"),
        (_truncate, "bytes instead of"),
        (_flip_a_byte, "CRC-32"),
        (_lose_the_position, "is missing"),
        (_garble_the_meta, "metadata has 1 bytes instead of"),
    ],
)
def test_a_broken_newest_is_skipped_named_and_saved_again(tmp_path, caplog, damage, reason):
    run(tmp_path, [1, 2, 3])
    damage(tmp_path / "checkpoints" / "3")
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = checkpointer.restore(make_state(), make_iterator())
        assert state.step == 2
        (warning,) = [record.getMessage() for record in caplog.records if "Skipping" in record.getMessage()]
        assert str(tmp_path / "checkpoints" / "3") in warning
        assert reason in warning
        assert (tmp_path / "checkpoints" / "broken-3").is_dir()
        assert checkpointer.save(3, state.replace(step=jnp.int32(3)), make_iterator(), {})
        state, _ = _wait_and_restore(checkpointer, make_state())
        assert state.step == 3


def test_damage_that_files_do_not_show_is_survived(tmp_path, caplog):
    """The files match their checksums, but Orbax cannot read them."""
    run(tmp_path, [1, 2])
    step_dir = tmp_path / "checkpoints" / "2"
    _truncate(step_dir)
    sums = json.loads((step_dir / "checksums.json").read_text())
    kept = {name: sum_ for name, sum_ in sums.items() if not name.startswith("state")}
    (step_dir / "checksums.json").write_text(json.dumps(kept))
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = checkpointer.restore(make_state(), make_iterator())
    assert state.step == 1
    assert "cannot be read" in caplog.text


def test_a_checkpoint_that_is_not_finite_is_skipped(tmp_path, caplog, monkeypatch):
    """An earlier version saved it, with the mIoU of predicting the first class everywhere."""
    run(tmp_path, [1])
    state = make_state()
    state.params["head"]["kernel"] = state.params["head"]["kernel"].at[3, 3].set(jnp.nan)
    with monkeypatch.context() as patch, Checkpointer(tmp_path) as checkpointer:
        patch.setattr("semiovs_jax.checkpoints.checkpointer.not_finite", lambda state: [])
        assert checkpointer.save(2, state, make_iterator(), {}, miou=0.9)
    assert restore_weights(tmp_path, {"params": state.params}).meta["step"] == 1
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(make_state(), make_iterator())
        assert checkpointer.best is None
    assert restored.step == 1
    assert "holds a NaN or an infinity in params/head" in caplog.text
    assert (tmp_path / "checkpoints" / "broken-2").is_dir()


def test_only_broken_checkpoints_is_one_error(tmp_path):
    run(tmp_path, [1, 2])
    _empty(tmp_path / "checkpoints" / "1")
    _truncate(tmp_path / "checkpoints" / "2")
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError) as error:
        checkpointer.restore(make_state(), make_iterator())
    message = str(error.value)
    assert "bytes instead of" in message
    assert "incomplete" in message
    assert f"remove {tmp_path / 'checkpoints'} to start" in message


def test_a_save_cut_short_is_not_a_checkpoint(tmp_path):
    run(tmp_path, [1])
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = checkpointer.restore(make_state(), make_iterator())
    assert state.step == 1


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("data")])
def test_other_device_counts(tmp_path, spec):
    tree = {"kernel": jnp.arange(64.0).reshape(8, 8), "step": jnp.ones((8,), jnp.bfloat16)}

    def put(count):
        return jax.device_put(tree, NamedSharding(Mesh(np.array(jax.devices()[:count]), ("data",)), spec))

    with Checkpointer(tmp_path) as checkpointer:
        for step, (saving, restoring) in enumerate(((8, 4), (4, 1), (1, 8)), start=1):
            checkpointer.save(step, put(saving), make_iterator(), {})
            restored, _ = _wait_and_restore(checkpointer, put(restoring))
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
    _truncate(tmp_path / "checkpoints" / "2")
    assert restore_weights(tmp_path, target).meta["step"] == 3
    assert steps_on_disk(tmp_path) == [2, 3], "a reader changes nothing"


def test_of_equally_good_checkpoints_the_weights_of_the_earlier_are_restored_first(tmp_path):
    state = run(tmp_path, [1, 2, 3, 4], {3: 0.5, 4: 0.5})
    assert restore_weights(tmp_path, {"params": state.params}).meta["step"] == 3
    _truncate(tmp_path / "checkpoints" / "3")
    assert restore_weights(tmp_path, {"params": state.params}).meta["step"] == 4


def test_weights_of_a_run_that_never_saved(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        restore_weights(tmp_path, {"params": {}})


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--workdir=.*file/run: cannot create .*choose a folder"):
        Checkpointer(tmp_path / "file" / "run")


@pytest.mark.parametrize("found_by", ["save", "wait", "close"])
def test_a_full_disk_is_one_message_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch, caplog, found_by):
    caplog.set_level(logging.INFO)
    write = module.write_checksums

    def full(step_dir):
        if step_dir.name.startswith("3"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(step_dir))
        write(step_dir)

    monkeypatch.setattr(module, "write_checksums", full)  # called in Orbax's writing thread
    run(tmp_path, [1, 2])
    expected = r"checkpoints: a checkpoint cannot be written \(No space left on device\); make room .*after step 2$"

    def save():
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(3, make_state(), make_iterator(), {})
            if found_by == "save":
                checkpointer.save(4, make_state(), make_iterator(), {})
            if found_by == "wait":
                checkpointer.wait()

    with pytest.raises(InputError, match=expected):
        save()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}, "no part is left"
    assert not [record for record in caplog.records if record.exc_info], "the traceback of the thread is not logged"


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
        state, _ = _wait_and_restore(checkpointer, make_state())
        assert state.step == 9
        assert checkpointer.restore(make_state(), make_iterator(), source).state.step == 9
    assert steps_on_disk(source) == [3, 5], "the source is not changed"


def test_a_damaged_checkpoint_of_the_source_of_a_fork_is_skipped_and_left_there(tmp_path):
    run(tmp_path / "source", [1, 2])
    _truncate(tmp_path / "source" / "checkpoints" / "2")
    with Checkpointer(tmp_path / "fork") as checkpointer:
        state, _ = checkpointer.restore(make_state(), make_iterator(), tmp_path / "source")
    assert state.step == 1
    assert steps_on_disk(tmp_path / "source") == [1, 2]


def test_paths_that_are_urls_or_that_orbax_would_not_find_again_are_refused(tmp_path, monkeypatch):
    for open_ in (Checkpointer, lambda path: restore_weights(path, {"params": {}})):
        with pytest.raises(InputError, match=r"--workdir=gs://b/r: URLs are not supported yet"):
            open_("gs://b/r")
        with pytest.raises(InputError, match=r"path with \[ or \] cannot be restored"):
            open_(tmp_path / "run[1]")
    state = run(tmp_path / "home", [1])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert restore_weights("~/home", {"params": state.params}).meta["step"] == 1
