"""A whole run with its labels, weights and words on object storage, stopped and continued."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.files import as_path
from data_pipelines.signals import Stopped
from semiovs_jax import train
from semiovs_jax.checkpoints.checkpointer import read_evaluated
from semiovs_jax.evaluate import evaluate
from semiovs_jax.reporting.metrics_log import read_records
from semiovs_jax.runtime.preemption import Preemption
from semiovs_jax.runtime.sharding import make_mesh
from tests.experiment import shrunk_demo


def _losses(workdir) -> list:
    return [(r["step"], r["event"], r.get("loss"), r.get("miou")) for r in read_records(workdir / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.long
def test_a_run_on_object_storage_is_the_one_on_disk(google: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    changes = {"train.steps": 2, "train.eval_every_steps": 2, "train.panel_images": 0}
    monkeypatch.chdir(tmp_path)
    local, remote = tmp_path / "run", as_path(f"{google}/whole/run", "--workdir")
    config = shrunk_demo(tmp_path, **changes)
    train.train_and_evaluate(config, local)
    base = remote.parent
    (base / "clip.safetensors").write_bytes((tmp_path / "clip.safetensors").read_bytes())
    paths = {"ovs.labels_dir": str(base / "labels"), "ovs.weights": str(base / "clip.safetensors")}
    config = shrunk_demo(tmp_path, **changes, **paths)
    before = set(tmp_path.iterdir())
    ask = Preemption.reached

    def terminated_at_step_1(self: Preemption, step: int) -> bool:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return ask(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "reached", terminated_at_step_1)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config, remote)
    train.train_and_evaluate(config, str(remote))
    assert set(tmp_path.iterdir()) == before
    names = {path.name for path in remote.iterdir()}
    assert {"checkpoints", "tensorboard", "metrics.jsonl", "report.html", "result.json", "curves.png"} <= names
    assert json.loads((base / "labels" / "manifest.json").read_text())["finished"]
    assert _losses(remote) == _losses(local)
    jax.tree.map(np.testing.assert_array_equal, read_evaluated(remote).state, read_evaluated(local).state)
    assert evaluate(str(remote))["miou"] == evaluate(local)["miou"]
