"""Checkpoints on object storage: gs:// by Orbax, s3:// by way of a local folder."""

import tempfile
from pathlib import Path

import pytest

from data_pipelines.files import as_path
from semiovs_jax.checkpoints.checkpointer import Checkpointer, restore_weights
from tests.checkpoints.toy import assert_equal, make_iterator, run, wait_and_restore


@pytest.mark.slow
def test_checkpoints_are_kept_restored_and_continued(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workdir = as_path(f"{bucket}/kept", "--workdir")
    state = run(workdir, [1, 2, 3], miou={1: 0.9, 3: 0.1}, keep_latest=1)
    folder = workdir / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["1", "3"]
    (folder / "4" / "state" / "d" / "a").write_bytes(b"of a killed process")
    (folder / "3" / "state" / "_METADATA").write_bytes(b"damaged")
    with Checkpointer(workdir, keep_latest=1) as checkpointer:
        restored = wait_and_restore(checkpointer, state)
        assert restored.meta["step"] == 1
        assert_equal(restored.state.replace(step=state.step), state)
        assert not checkpointer.save(1, state, make_iterator(), {})
        assert checkpointer.save(3, state, make_iterator(), {"model": "toy"})
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["1", "3"]
    assert restore_weights(workdir, {"params": state.params}).meta["step"] == 1
    assert not list(tmp_path.iterdir())
