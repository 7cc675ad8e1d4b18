"""Damaged checkpoints are skipped and named; a disk that fails costs no good one."""

import errno
import json
import logging
import os

import jax.numpy as jnp
import pytest

from data_pipelines.errors import InputError
from semiovs_jax.checkpoints import checkpointer as module
from semiovs_jax.checkpoints.checkpointer import Checkpointer, restore_weights
from tests.checkpoints.toy import make_iterator, make_state, run, truncate, wait_and_restore


def _empty(step_dir):
    for path in sorted(step_dir.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


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
        (truncate, "bytes instead of"),
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
        state, _ = wait_and_restore(checkpointer, make_state())
        assert state.step == 3


def test_damage_that_files_do_not_show_is_survived(tmp_path, caplog):
    """The files match their checksums, but Orbax cannot read them."""
    run(tmp_path, [1, 2])
    step_dir = tmp_path / "checkpoints" / "2"
    truncate(step_dir)
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
    truncate(tmp_path / "checkpoints" / "2")
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
