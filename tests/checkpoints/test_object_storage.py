"""Checkpoints on object storage: gs:// by Orbax, s3:// by way of a local folder."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import pytest

from data_pipelines.files import as_path
from semiovs_jax.checkpoints.checkpointer import Checkpointer, restore_weights
from tests.checkpoints.toy import assert_equal, make_iterator, run, wait_and_restore


def test_checkpoints_are_kept_restored_and_continued(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workdir = as_path(f"{bucket}/kept", "--workdir")
    state = run(workdir, [1, 2, 3, 4], miou={1: 0.9, 4: 0.1})
    folder = workdir / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["1", "3", "4"]
    (folder / "5" / "state" / "d" / "a").write_bytes(b"of a killed process")
    largest = max(
        (path for path in (folder / "4" / "state").files()), key=lambda p: len((folder / "4/state" / p).read_bytes())
    )
    (folder / "4" / "state" / largest).write_bytes(b"damaged")
    with Checkpointer(workdir) as checkpointer:
        restored = wait_and_restore(checkpointer, state)
        assert restored.meta["step"] == 3
        assert_equal(restored.state.replace(step=state.step), state)
        assert not checkpointer.save(3, state, make_iterator(), {})
        assert checkpointer.save(4, state.replace(step=jnp.int32(4)), make_iterator(), {"model": "toy"})
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["1", "3", "4"]
    assert restore_weights(workdir, {"params": state.params}).meta["step"] == 1
    assert not list(tmp_path.iterdir())
